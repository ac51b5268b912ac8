"""MetaPaths, the three actions, and a whole slimming without a clock."""

import copy

import pytest
import torch
from mmengine.config import Config
from search_without_clock import SIZE, Ruler, options, part_ms
from tiny_training import tiny_config
from torch import nn

from mmplugin.backbones import EfficientFormer
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError
from mmplugin.hooks.layer_scale import FROM_SCRATCH, set_layer_scales_
from mmplugin.search import joint, mixture, slim
from mmplugin.search.budget import Budget
from mmplugin.search.elastic import ElasticBackbone
from mmplugin.search.elastic_space import ElasticSpace
from mmplugin.search.greedy import Greedy
from mmplugin.search.latency import LatencyTable

ARCH = dict(widths=(32, 48, 64, 64), depths=(2, 1, 3, 3), attention_blocks=1, key_dim=8, value_dim=16)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def path(alpha, blocks=None):
    found = mixture.MetaPath(blocks or [Twice(), Twice()]).eval()
    with torch.no_grad():
        found.alpha.copy_(torch.tensor(alpha))
    return found


def test_a_path_is_the_identity_or_the_block_that_has_all_the_weight():
    x = torch.rand(2, 3, 5, 5)
    torch.testing.assert_close(path([-99.0, -99.0, 99.0])(x), x)
    torch.testing.assert_close(path([99.0, -99.0, -99.0])(x), 2 * x)
    torch.testing.assert_close(path([0.0, 0.0, 0.0])(x), x + 2 / 3 * x)


def test_importance_is_positive_finite_and_rises_with_alpha():
    values = [
        path([a, -b, b]).importance() for a, b in ((-50.0, 50.0), (-1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (50.0, -50.0))
    ]
    assert all(0 < value < float('inf') for value in values)
    assert values == sorted(values)
    assert path([0.0, 0.0, 0.0]).importance() == pytest.approx(2)
    probabilities = torch.tensor([0.3, -0.2, 0.9]).softmax(0)
    assert path([0.3, -0.2, 0.9]).importance() == pytest.approx(float(probabilities[:2].sum() / probabilities[2]))


def test_noise_is_drawn_in_training_only():
    found = path([0.0, 0.0, 0.0])
    assert torch.equal(found.weights(), found.weights())
    found.train()
    torch.manual_seed(0)
    assert not torch.equal(found.weights(), found.weights())
    with pytest.raises(UserError, match="noise is 'normal'; allowed: uniform, gumbel"):
        mixture.MetaPath([Twice()], 'normal')


def space(importance):
    base = slim.SlimSpace.of(ElasticSpace.below('v1', ARCH))
    names = [size for size in base.largest() if size.startswith('block')]
    return slim.replace(base, importance=dict.fromkeys(names, 5.0) | importance)


def test_planted_importance_decides_the_three_actions():
    found = space({'block.2.1': 0.5, 'block.1.0': 0.1, 'block.3.0': 3.0})
    largest = found.largest()
    actions = found.actions(largest)
    # block.1.0 is the only one of its stage; stage 1 has the smallest sum
    assert list(actions) == ['attention.3', 'block.2.1', 'width.1']
    assert actions['width.1']['width.1'] == 32
    first = found.arch(actions['attention.3'])
    assert (first['attention_blocks'], first['depths'], first['hidden'][3]) == (2, (2, 1, 3, 3), (256, 256, 256))
    assert found.sources(actions['attention.3']) == [[0, 1], [0], [0, 1, 2], [0, 4, 5]]
    assert found.sources({**largest, 'block.3.1': 0, 'attention.3': 1})[3] == [0, 5]


def test_uniform_scaling_starts_from_the_network_of_the_config():
    found = space({})
    assert found.arch(found.uniform(1.0)) == EfficientFormer.explicit(ARCH)
    half = found.arch(found.uniform(0.5))
    assert (half['attention_blocks'], half['depths']) == (1, (1, 1, 2, 2))


def test_the_latency_decides_among_the_three_actions():
    found = space({'block.2.1': 0.5})
    saved = {'attention.3': 1.0, 'block.2.1': 4.0, 'width.1': 1.0}

    def cost(state):
        largest = found.largest()
        return 20 - sum(ms for name, ms in saved.items() if state[name] < largest[name])

    greedy = Greedy(found, found.largest(), lambda states: [[float(s != found.largest())] for s in states],
                    {'latency_ms': cost}, {'latency_ms': 15.0}, exact=True)  # fmt: skip
    step = greedy.step()
    assert (step.action, len(step.evaluated)) == ('block.2.1', 3)


def test_a_mixed_backbone_contains_the_network_itself_and_its_paths_become_one_backbone():
    torch.manual_seed(0)
    large = EfficientFormer(ARCH).eval()
    set_layer_scales_(large, FROM_SCRATCH)
    mixed = copy.deepcopy(large)
    mixture.mixed_(mixed)
    mixed.eval()
    x = torch.rand(1, 3, 65, 70)
    with torch.no_grad():
        for i, stage in enumerate(mixed.stages):
            for j, path in enumerate(stage.blocks):
                own = 1 if i == 3 and j == 2 else 0
                path.alpha.copy_(torch.tensor([99.0 * (n == own) for n in range(len(path.alpha))]))
        for ours, theirs in zip(mixed(x), large(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        elastic, found = ElasticBackbone(mixture.unmixed(mixed)).eval(), space({})
        state = {**found.largest(), 'attention.3': 1}
        elastic.select(found.arch(state), found.sources(state))
        for ours, theirs in zip(elastic(x), large(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Clockless(slim.SlimRun):
    meter_class = Ruler

    def _measured_table(self, family):
        return LatencyTable.measure(family, SIZE, around=self.settings, clock=part_ms(family))


@pytest.fixture(autouse=True)
def _short(monkeypatch, tiny_sets):
    monkeypatch.setattr('mmplugin.search.run.START_STEPS', 1)
    monkeypatch.setattr(joint, 'RECALIBRATION', 1)
    monkeypatch.setattr('mmplugin.search.evaluate.CALIBRATION', 1)
    monkeypatch.setattr('mmplugin.search.evaluate.CALIBRATION_IMAGES', 1)
    monkeypatch.setattr(joint.Settings.__init__, '__defaults__', (1, 1, 'taylor', True, 0.5))


def slim_v1(folder, **changes):
    folder.mkdir(exist_ok=True)
    cfg = Config.fromfile(tiny_config('semfpn_v1_l1', folder))
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    cfg.model.neck.in_channels = list(ARCH['widths'])
    cfg.work_dir = str(folder)
    chosen = options(method='slim', steps=2, recover=0, **changes)
    return Clockless(cfg, chosen, Budget.from_options(latency='85%')).run()


def test_slimming_meets_the_target_and_its_result_loads(tmp_path):
    result = slim_v1(tmp_path)
    assert abs(result.trace[-1]['measured'] / result.trace[0]['measured'] / 0.85 - 1) < 0.06
    kinds = {action['size'].partition('.')[0] for record in result.trace[1:] for action in record['actions']}
    assert kinds <= {'attention', 'block', 'width'}
    model = build_model(Config.fromfile(tmp_path / 'config.py'))
    model.load_state_dict(torch.load(tmp_path / 'whole.pth')['state_dict'])


@pytest.mark.slow
def test_a_search_that_was_killed_continues_with_the_same_trace(tmp_path, monkeypatch):
    result, killed = slim_v1(tmp_path / 'whole'), tmp_path / 'killed'
    with monkeypatch.context() as patch:
        patch.setattr(slim, 'SAVE', 1)  # after the first of two steps
        save = slim.SlimRun._save_supernet

        def stop(self, content):
            save(self, content)
            raise KeyboardInterrupt

        patch.setattr(slim.SlimRun, '_save_supernet', stop)
        with pytest.raises(KeyboardInterrupt):
            slim_v1(killed)
    resumed = slim_v1(killed, resume=True)
    assert resumed.trace == result.trace
    assert all(torch.equal(value, resumed.state_dict[key]) for key, value in result.state_dict.items())


def test_other_families_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(slim.SlimRun, '_take_table', None)
    cfg = Config.fromfile(tiny_config('semfpn_v2_s0', tmp_path))
    cfg.work_dir = str(tmp_path)
    with pytest.raises(UserError, match='slim is the method of v1, and this config is of v2; use joint or prune'):
        Clockless(cfg, options(method='slim'), Budget.from_options(latency='85%')).run()
