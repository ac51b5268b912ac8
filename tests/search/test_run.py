"""A whole search on eight images, without a clock: parts take what a function says."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from search_without_clock import CONFIGS, HEAD_MS, SIZE, Ruler, options, part_ms
from tiny_training import last_weights, run_training, tiny_config

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.sizes import deployed_parameters
from mmplugin.convert import convert
from mmplugin.convert.arch_of import arch_of
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError
from mmplugin.search import Space, prune_run, result, run
from mmplugin.search import search as library_search
from mmplugin.search.budget import Budget, Figures
from mmplugin.search.latency import LatencyTable
from mmplugin.search.parts import parts_of
from mmplugin.search.prune import space_of
from mmplugin.search.space import sizes_of
from mmplugin.search.subnet import family_of
from mmplugin.search.whole import ParameterCounter

# The widths of the configs, whose necks and heads fit, but few blocks: a search takes seconds.
FEW_BLOCKS = {
    'v2': dict(
        FAMILIES['v2'].ARCHS['s0'], depths=(1, 1, 2, 2), ratios=((4,), (4,), (4, 3), (4, 3)), attention_blocks=1
    ),
    'evit': dict(FAMILIES['evit'].ARCHS['m0'], depths=(1, 1, 2)),
    'v1': dict(FAMILIES['v1'].ARCHS['l1'], depths=(1, 1, 2, 2)),
}


class Clockless(prune_run.PruneRun):
    meter_class = Ruler

    def _measured_table(self, family):
        return LatencyTable.measure(family, SIZE, around=self.settings, clock=part_ms(family))


def search(family, folder, latency='70%', backbone=None, hooks=None, **changes):
    work = folder / 'work'
    work.mkdir(exist_ok=True, parents=True)
    cfg = Config.fromfile(tiny_config(CONFIGS[family], folder))
    cfg.work_dir = str(work)
    cfg.model.backbone.update({'arch': FEW_BLOCKS[family], **(backbone or {})})
    cfg.custom_hooks = hooks or cfg.get('custom_hooks')
    return Clockless(cfg, options(**changes), Budget.from_options(latency=latency)).run()


@pytest.fixture(autouse=True)
def _short(monkeypatch, tiny_sets):
    monkeypatch.setattr(run, 'START_STEPS', 2)
    monkeypatch.setattr('mmplugin.search.prune.RECALIBRATION', 2)
    monkeypatch.setattr(prune_run.Settings.__init__, '__defaults__', (2, 2, 'taylor', True, 0.5))


def comparable(trace):
    return json.loads(json.dumps(trace))


@pytest.mark.parametrize(
    'family', ['v2', pytest.param('evit', marks=pytest.mark.slow), pytest.param('v1', marks=pytest.mark.slow)]
)
def test_the_result_is_an_ordinary_network_that_every_tool_takes(family, tmp_path):
    whole = dict(arch='s0') if family == 'v2' else None
    found = search(family, tmp_path, '85%', whole)
    work = tmp_path / 'work'
    target = 0.85 * found.trace[0]['measured']
    assert abs(found.trace[-1]['measured'] / target - 1) < 0.05
    # the backbone alone loads strictly, through init_cfg and through convert, with its note and without
    cfg = Config.fromfile(work / 'config.py')
    model = build_model(cfg)
    model.init_weights()
    backbone = torch.load(work / 'backbone.pth')
    assert all(torch.equal(value, backbone['state_dict'][key]) for key, value in model.backbone.state_dict().items())
    explicit = model.backbone.explicit(json.loads((work / 'arch.json').read_text())['arch'])
    assert arch_of(backbone['state_dict'])[0] == family
    for source in (backbone, backbone['state_dict'], torch.load(work / 'whole.pth')):
        assert model.backbone.explicit(convert(source).backbone['arch']) == explicit
    # the whole model loads strictly and trains
    model.load_state_dict(torch.load(work / 'whole.pth')['state_dict'])
    if family == 'v2':
        cfg.load_from = str(work / 'whole.pth')
        cfg.train_cfg.update(max_epochs=1, val_interval=1, val_begin=1)
        cfg.dump(tmp_path / 'next.py')
        run_training(tmp_path / 'next.py', tmp_path / 'next')
        assert last_weights(tmp_path / 'next').keys() == torch.load(work / 'whole.pth')['state_dict'].keys()


@pytest.mark.slow  # the same of --method joint is in the default suite
def test_a_search_that_was_killed_continues_with_the_same_trace(tmp_path, monkeypatch):
    whole = search('v2', tmp_path / 'whole')
    assert len(whole.trace) > 3
    save, calls = prune_run.PruneRun._save_state, []

    def stop_after_two(self, *args):
        save(self, *args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(prune_run.PruneRun, '_save_state', stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        search('v2', tmp_path / 'killed')
    monkeypatch.setattr(prune_run.PruneRun, '_save_state', save)
    resumed = search('v2', tmp_path / 'killed', resume=True)
    assert comparable(resumed.trace) == comparable(whole.trace)
    assert all(torch.equal(value, resumed.state_dict[key]) for key, value in whole.state_dict.items())


def test_a_search_resumes_only_with_its_own_options(tmp_path, monkeypatch):
    save = prune_run.PruneRun._save_state

    def stop(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(prune_run.PruneRun, '_save_state', stop)
    with pytest.raises(KeyboardInterrupt):
        search('v2', tmp_path)
    with pytest.raises(UserError, match=r'another search \(seed: 1, there 0; budget: .*use its options'):
        search('v2', tmp_path, resume=True, seed=1, latency='65%')
    with pytest.raises(UserError, match=r'another search \(config: tiny with settings \w{8}, there tiny with settings'):
        search('v2', tmp_path, resume=True, backbone=dict(arch='s0'))


def test_a_start_from_random_weights_has_open_branches(tmp_path, monkeypatch):
    monkeypatch.setattr(prune_run.PruneRun, '_search', lambda self, state: None)
    search('v2', tmp_path, hooks=[dict(type='LayerScaleHook', value=0.4)])
    start = torch.load(tmp_path / 'work' / run.START)['state_dict']
    assert float(start['backbone.stages.0.blocks.0.layer_scale_2'].mean()) == pytest.approx(0.4, abs=0.05)


def test_budgets_that_are_met_or_cannot_be_met_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(run.Run, '_train_start', None)
    with pytest.raises(UserError, match=r'is met already: the start has .* ms'):
        search('v2', tmp_path, latency='100%')
    with pytest.raises(UserError, match=r'smallest network of this space takes .* neck and head alone take 1 ms'):
        search('v2', tmp_path, latency='1%')


@pytest.mark.slow
def test_parameters_and_multiply_adds_are_targets_too(tmp_path):
    folder = tmp_path / 'work'
    folder.mkdir()
    cfg = Config.fromfile(tiny_config(CONFIGS['v2'], tmp_path))
    cfg.work_dir = str(folder)
    cfg.model.backbone.arch = FEW_BLOCKS['v2']
    budget = Budget.from_options(params='85%', macs='90%')
    trace = Clockless(cfg, options(recover=0), budget).run().trace
    assert trace[-1]['params'] <= 0.85 * trace[0]['params']
    assert trace[-1]['macs'] <= 0.9 * trace[0]['macs']
    for budget, message in ((Budget(memory=1.0), 'cannot aim at memory'), (Budget(), 'there is no budget: give')):
        with pytest.raises(UserError, match=message):
            Clockless(cfg, options(recover=0), budget).run()


@pytest.mark.slow
def test_a_target_that_turns_out_to_be_out_of_reach_ends_with_what_was_found(tmp_path, capsys):
    """The smallest network is a little slower than the target: by less than what is refused at once."""
    smallest = Space.below('v2', FEW_BLOCKS['v2']).smallest()
    limit = (HEAD_MS + sum(map(part_ms('v2'), parts_of('v2', smallest)))) / 1.04
    found = search('v2', tmp_path, f'{limit}ms', recover=0)
    assert 'nothing is left to remove that reduces latency' in capsys.readouterr().err
    assert all(record['actions'] for record in found.trace[1:])
    assert 1.04 * limit <= found.trace[-1]['measured'] * (1 + 1e-6)


def test_a_latency_table_is_used_only_under_its_own_conditions(tmp_path, monkeypatch):
    path = tmp_path / 'table.json'
    LatencyTable.measure('v2', SIZE, around='s0', clock=part_ms('v2')).save(path)
    for changes, message in ((dict(batch=2), 'batch 1, wanted 2'), (dict(mode='eager'), 'mode fused, wanted eager')):
        with pytest.raises(UserError, match=message):
            search('v2', tmp_path, latency_table=path, **changes)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 77)
    with pytest.raises(UserError, match=r'threads \d+, wanted 77'):
        search('v2', tmp_path, latency_table=path)


def test_rounds_are_those_of_the_table_too(monkeypatch):
    asked = []
    monkeypatch.setattr(LatencyTable, 'measure', lambda *_, **given: asked.append(given['rounds']))
    for rounds in (2, 30):
        own = SimpleNamespace(options=options(rounds=rounds), settings='s0', say=str)
        prune_run.PruneRun._measured_table(own, 'v2')
    assert asked == [12, 30]


def test_stages_that_are_not_built_are_not_searched():
    arch = dict(FEW_BLOCKS['evit'], depths=(1, 1, 1))
    model = SimpleNamespace(backbone=FAMILIES['evit'](arch, out_indices=(0, 1)))
    space = space_of(model)
    found = {size for size in space.actions(sizes_of('evit', arch)) if not space.fixed & {size}}
    assert found >= {'hidden.1.0', 'downsample.0.1', 'merge.0'}
    assert not found & {'hidden.2.0', 'downsample.1.0', 'downsample.1.1', 'merge.1', 'key.2'}


@pytest.mark.slow
def test_the_library_call_measures_or_takes_a_table_and_saves(tmp_path):
    cfg = Config.fromfile(tiny_config(CONFIGS['v2'], tmp_path))
    table = LatencyTable.measure('v2', SIZE, around='s0', clock=part_ms('v2'))
    space = Space.below('v2', 's0', ['width'])
    options = dict(table=table, recover=0, images=3, rounds=2, of='backbone', work_dir=tmp_path / 'work')
    found = library_search(cfg, Budget(shares={'latency_ms': 0.97}), space, **options)
    assert found.arch['widths'] == [32, 48, 96, 176]
    assert {path.name for path in (tmp_path / 'work').iterdir()} >= {'latency.json', 'config.py'}
    assert not (tmp_path / 'work' / result.STATE).exists()
    found.save(tmp_path / 'mine')
    assert {path.name for path in (tmp_path / 'mine').iterdir()} == {
        'arch.json', 'backbone.pth', 'config.py', 'trace.jsonl', 'whole.pth',
    }  # fmt: skip
    with pytest.raises(UserError, match=r'no option colour; allowed: method, checkpoint, '):
        library_search(cfg, Budget(latency_ms=1.0), colour=1)
    with pytest.raises(UserError, match='the space starts from'):
        library_search(cfg, Budget(latency_ms=1.0), Space.below('v2', 's1'), **options)
    with pytest.raises(UserError, match='the latency table is of other conditions than wanted: mode fused, wanted eag'):
        library_search(cfg, Budget(latency_ms=1.0), mode='eager', **options)


class Unlike(Ruler):
    """The last stage takes forty times as long as the table says."""

    @staticmethod
    def ms(model):
        backbone = model.backbone
        parts = parts_of(family_of(backbone), backbone.settings)
        return HEAD_MS + sum(part_ms('v2')(part) * (40 if part.stage == 3 else 1) for part in parts)


@pytest.mark.slow
def test_a_round_that_removes_too_much_is_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Clockless, 'meter_class', Unlike)
    trace = search('v2', tmp_path, '80%', dict(arch='s0'), recover=0).trace
    assert 'is repeated' in capsys.readouterr().err
    assert abs(trace[-1]['measured'] / (0.8 * trace[0]['measured']) - 1) < 0.05
    assert [record['number'] for record in trace] == list(range(len(trace)))


def test_the_summary_says_what_was_missed_and_what_else_would_do():
    start, limits = Figures(20.0, 4e6, 1e9, 0), {'latency_ms': 10.0, 'params': 2e6}
    good = result.summary(Figures(10.2, 1.9e6, 5e8, 0), start, limits, (1.0, 1.01))
    assert good == (
        '10.2 ms of 10 ms (measured), 1.9 M of 2 M parameters; 1.90 M parameters, loss 1.010. The start has 20.0 ms, '
        '4.00 M and 1.000.'
    )
    bad = result.summary(Figures(11.0, 1.9e6, 5e8, 0), start, limits, (1.0, 1.2), ['v2_s0'])
    assert '11 ms of 10 ms (measured) MISSED' in bad
    assert 'The loss rose by 20%' in bad
    counted = result.summary(Figures(15.0, 1.9e6, 5e8, 0), start, {'params': 2e6}, (1.0, 1.01))
    assert counted.startswith('1.9 M of 2 M parameters; 15.0 ms, 1.90 M parameters, loss 1.010.')
    assert bad.endswith('v2_s0 meets the budget, too, by prediction: train one next to the result before you choose.')


def test_a_backbone_that_computes_again_in_backward_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'with_cp=True; add --cfg-options model\.backbone\.with_cp=False'):
        search('v2', tmp_path, backbone=dict(with_cp=True))


@pytest.mark.parametrize('family', FAMILIES)
def test_parameters_by_part_are_those_of_the_fused_backbone(family):
    counter, space = ParameterCounter(family), Space.below(family, next(iter(FAMILIES[family].ARCHS)))
    for arch in (space.start, space.smallest()):
        with torch.device('meta'):
            backbone = FAMILIES[family](arch)
        assert counter(arch) == deployed_parameters(backbone)
