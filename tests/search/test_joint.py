"""A whole joint search on eight images, without a clock, in one process and in two."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from search_without_clock import SIZE, Ruler, options, part_ms
from tiny_training import last_weights, run_training, tiny_config
from torch import distributed
from two_processes import run_in_two_processes

from mmplugin.data.synthetic import ensure_mini_ade
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError
from mmplugin.search import joint
from mmplugin.search.budget import Budget
from mmplugin.search.latency import LatencyTable

ARCH = dict(
    widths=(16, 24, 32, 40), depths=(2, 1, 3, 3), attention_blocks=(1, 2), ratios=((4, 4), (4,), (4,) * 3, (4,) * 3),
    key_dim=8, value_dim=16,
)  # fmt: skip


class Clockless(joint.JointRun):
    meter_class = Ruler

    def _measured_table(self, family):
        return LatencyTable.measure(family, SIZE, around=self.settings, clock=part_ms(family))


def prepare(folder):
    folder.mkdir(exist_ok=True, parents=True)
    cfg = Config.fromfile(tiny_config('semfpn_v2_s0', folder))
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    cfg.model.neck.in_channels = list(ARCH['widths'])
    cfg.work_dir = str(folder / 'work')
    Path(cfg.work_dir).mkdir(exist_ok=True)
    return cfg


def search(folder, latency='95%', backbone=None, **changes):
    chosen = options(**{**dict(method='joint', steps=4), **changes})
    cfg = prepare(folder)
    cfg.model.backbone.update(backbone or {})
    return Clockless(cfg, chosen, Budget.from_options(latency=latency)).run()


def shorten(monkeypatch):
    monkeypatch.setattr('mmplugin.search.run.START_STEPS', 2)
    monkeypatch.setattr(joint, 'RECALIBRATION', 2)
    monkeypatch.setattr(joint, 'SAVE', 2)
    monkeypatch.setattr('mmplugin.search.evaluate.CALIBRATION', 1)
    monkeypatch.setattr('mmplugin.search.evaluate.CALIBRATION_IMAGES', 4)
    monkeypatch.setattr(joint.Settings.__init__, '__defaults__', (2, 2, 'taylor', True, 0.5))


@pytest.fixture(autouse=True)
def _short(monkeypatch, tiny_sets):
    shorten(monkeypatch)


def comparable(trace):
    return json.loads(json.dumps(trace))


@pytest.fixture(scope='module')
def whole(tmp_path_factory, tiny_sets):
    """A search that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        folder = tmp_path_factory.mktemp('whole')
        return search(folder), folder


def test_the_result_meets_the_target_and_is_an_ordinary_network(whole, tmp_path):
    result, folder = whole
    work = folder / 'work'
    assert abs(result.trace[-1]['measured'] / result.trace[0]['measured'] / 0.95 - 1) < 0.05
    assert 'uniform scaling of the start' in result.summary
    cfg = Config.fromfile(work / 'config.py')
    model = build_model(cfg)
    model.load_state_dict(torch.load(work / 'whole.pth')['state_dict'])
    cfg.load_from = str(work / 'whole.pth')
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.dump(tmp_path / 'next.py')
    run_training(tmp_path / 'next.py', tmp_path / 'next')
    assert last_weights(tmp_path / 'next').keys() == torch.load(work / 'whole.pth')['state_dict'].keys()
    assert not (work / joint.SUPERNET).exists()


@pytest.mark.parametrize('place', ['supernet', pytest.param('greedy', marks=pytest.mark.slow)])
def test_a_search_that_was_killed_continues_with_the_same_trace(whole, place, tmp_path, monkeypatch):
    name, calls = f'_save_{place}', []
    save = getattr(joint.JointRun, name)

    def stop(self, *args):
        save(self, *args)
        calls.append(1)
        if len(calls) == (1 if place == 'supernet' else 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(joint.JointRun, name, stop)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path)
    monkeypatch.setattr(joint.JointRun, name, save)
    with pytest.raises(UserError, match=r'another search \(.*steps: 9, there 4'):
        search(tmp_path, resume=True, steps=9)
    resumed = search(tmp_path, resume=True)
    assert comparable(resumed.trace) == comparable(whole[0].trace)
    assert all(torch.equal(value, resumed.state_dict[key]) for key, value in whole[0].state_dict.items())


@pytest.mark.slow
def test_several_targets_take_several_networks_from_one_supernet(tmp_path):
    result = search(tmp_path, '92%', targets=['92%', '96%'], recover=0)
    first = result.trace[0]['measured']
    for name, share in (('96pct', 0.96), ('92pct', 0.92)):
        last = json.loads((tmp_path / 'work' / name / 'trace.jsonl').read_text().splitlines()[-1])
        assert abs(last['measured'] / first / share - 1) < 0.05
        arch = json.loads((tmp_path / 'work' / name / 'arch.json').read_text())['arch']
        assert arch == json.loads(json.dumps(last['arch'])) | {'drop_path_rate': 0.0} or arch == last['arch']


@pytest.mark.slow
def test_a_search_that_goes_back_and_is_killed_continues_with_the_same_trace(tmp_path, monkeypatch, capsys):
    """Networks are faster than predicted: the last actions are undone. A killed search knows the way back, too."""
    ms = Ruler.ms
    monkeypatch.setattr(Ruler, 'ms', staticmethod(lambda model: ms(model) ** 2))
    whole = search(tmp_path / 'whole', '80%')
    assert 'the search goes on' in capsys.readouterr().err
    save, saved = joint.JointRun._save_greedy, []

    def stop_after_three(self, progress):
        save(self, progress)
        saved.append(progress.misses)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(joint.JointRun, '_save_greedy', stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / 'killed', '80%')
    assert saved == [0, 0, 0]
    monkeypatch.setattr(joint.JointRun, '_save_greedy', save)
    resumed = search(tmp_path / 'killed', '80%', resume=True)
    assert comparable(resumed.trace) == comparable(whole.trace)
    assert len(whole.trace) - 1 > 0


@pytest.mark.slow
def test_each_target_is_reported_once_also_if_the_search_was_killed_between_them(tmp_path, monkeypatch):
    reported, save = [], joint.JointRun._save_greedy

    def stop_between(self, progress):
        save(self, progress)
        if progress.done:
            raise KeyboardInterrupt

    monkeypatch.setattr(joint.JointRun, 'report', lambda self, found: reported.append(found.folder.name))
    with monkeypatch.context() as patch:
        patch.setattr(joint.JointRun, '_save_greedy', stop_between)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, '92%', targets=['92%', '96%'], recover=0)
    search(tmp_path, '92%', targets=['92%', '96%'], recover=0, resume=True)
    assert reported == ['96pct', '92pct']


@pytest.mark.parametrize(
    ('targets', 'message'),
    [
        (None, 'smallest network of this space takes'),
        (['96%', '1.1ms'], 'smallest network of this space takes'),  # shares and milliseconds mixed
        (['96%', '100%'], r'--targets 100% is met already'),
    ],
)
def test_targets_that_make_no_sense_are_refused_before_anything_is_trained(targets, message, tmp_path, monkeypatch):
    monkeypatch.setattr(joint.JointRun, '_train_start', None)
    with pytest.raises(UserError, match=message):
        search(tmp_path, targets[0] if targets else '1%', targets=targets)


def _one_of_two(rank, folder, root):
    """Search in one of two processes."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr('mmplugin.engine.mini.ensure_mini_ade', lambda _: ensure_mini_ade(root, 8, 2))
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        torch.set_num_threads(1)
        distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
        result = search(folder / f'process{rank}')
        if rank == 0:
            torch.save(result.state_dict, folder / 'weights.pth')
            (folder / 'trace.json').write_text(json.dumps(result.trace))
        distributed.barrier()
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_the_same_network_with_the_same_trace(whole, tmp_path, tiny_sets):
    run_in_two_processes(_one_of_two, tmp_path, tiny_sets)
    assert json.loads((tmp_path / 'trace.json').read_text()) == comparable(whole[0].trace)
    weights = torch.load(tmp_path / 'weights.pth')
    assert all(torch.equal(value, weights[key]) for key, value in whole[0].state_dict.items())


def test_frozen_stages_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(joint.JointRun, '_take_table', None)
    with pytest.raises(UserError, match=r'frozen_stages is 1, but a supernet trains all stages; add --cfg-options'):
        search(tmp_path, backbone=dict(frozen_stages=1))
