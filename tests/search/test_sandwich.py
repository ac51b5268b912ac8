"""Training of the supernet, and the norm statistics of sub-networks."""

import copy
import random

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from tiny_training import tiny_config
from torch.nn.modules.batchnorm import _BatchNorm

from mmplugin.errors import UserError
from mmplugin.search import evaluate, supernet
from mmplugin.search.elastic import ElasticBackbone
from mmplugin.search.importance import Importance
from mmplugin.search.sandwich import Sandwich, rate_factor
from mmplugin.search.subnet import subnet
from mmplugin.search.task import Task

ARCH = dict(
    widths=(16, 24, 32, 40), depths=(2, 1, 3, 3), attention_blocks=(1, 2), ratios=((4, 4), (4,), (4,) * 3, (4,) * 3),
    key_dim=8, value_dim=16,
)  # fmt: skip


@pytest.fixture(scope='module')
def original(tmp_path_factory, tiny_sets):
    cfg = Config.fromfile(tiny_config('semfpn_v2_s0', tmp_path_factory.mktemp('task')))
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    cfg.model.neck.in_channels = list(ARCH['widths'])
    task = Task(cfg, 4, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in task.model.backbone.named_parameters():
            if 'layer_scale' in name:
                parameter.uniform_(0.3, 1.0)
    return task


@pytest.fixture
def task(original):
    own = copy.copy(original)
    own.model = copy.deepcopy(original.model)
    return own


@pytest.fixture
def elastic(task):
    space = supernet.elastic_space_of(task.model)
    task.model.backbone = ElasticBackbone(task.model.backbone)
    return task, space


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if 'running' in name}


def test_the_largest_network_is_trained_as_in_ordinary_training(elastic, original):
    task, space = elastic
    sandwich = Sandwich(task, space, steps=1, first=0)
    sandwich.states = lambda step: [None] * 4
    list(sandwich.train())
    ordinary = copy.deepcopy(original.model).train()
    optimizer = build_optim_wrapper(ordinary, copy.deepcopy(task.cfg.optim_wrapper))
    for group in optimizer.param_groups:
        group['lr'] *= rate_factor(0, 1)
    alone = copy.copy(original)
    alone.model = ordinary
    (batch,) = task.batches(0, 1)
    optimizer.update_params(alone.loss(batch, 0))
    for (name, ours), theirs in zip(task.model.named_parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)


def test_statistics_are_those_of_the_largest_network_alone(elastic, original):
    task, space = elastic
    sandwich = Sandwich(task, space, steps=10, first=0)
    for group in sandwich.optimizer.param_groups:
        group['lr'] = 0.0
    sandwich.rates = [0.0] * len(sandwich.rates)
    list(sandwich.train())
    alone = copy.copy(original)
    alone.model = copy.deepcopy(original.model).train()
    with torch.no_grad():
        for number, batch in enumerate(task.batches(0, 10)):
            alone.loss(batch, number)
    expected = statistics(alone.model)
    assert expected
    for name, buffer in statistics(task.model).items():
        assert torch.equal(buffer, expected[name]), name


def test_all_four_networks_of_a_step_train_and_depend_on_seed_and_step_only(elastic):
    task, space = elastic
    sandwich = Sandwich(task, space, steps=3, first=0)
    states = sandwich.states(1)
    assert states[0] is None
    assert states[3] == space.smallest()
    assert states == Sandwich(task, space, steps=3, first=0).states(1) != sandwich.states(2)
    assert all(len(set(of_step)) > 1 for of_step in sandwich.train())


def test_the_gradient_of_a_step_is_that_of_the_mean_loss_of_the_four_networks(elastic):
    task, space = elastic
    sandwich, gradients = Sandwich(task, space, steps=3, first=0), []
    sandwich.optimizer.step = lambda: gradients.append([p.grad.clone() for p in parameters])
    parameters = [p for p in task.model.backbone.parameters() if p.requires_grad]
    (batch,) = task.batches(0, 1)
    task.model.train()
    sandwich._step(batch)
    length = sum(float(grad.square().sum()) for grad in gradients[0]) ** 0.5
    means = []
    for distance in (0.002, -0.004):  # along the gradient, and from there as far to the other side of the start
        with torch.no_grad():
            for parameter, grad in zip(parameters, gradients[0], strict=True):
                parameter.add_(grad, alpha=distance / length)
        means.append(sum(sandwich._step(batch)) / 4)
    assert (means[0] - means[1]) / 0.004 == pytest.approx(length, rel=0.03)


def test_a_network_that_is_taken_from_the_supernet_computes_what_the_supernet_does_on_padded_maps(elastic):
    task, space = elastic
    task.model.eval()
    x, backbone = torch.rand(1, 3, 75, 101), task.model.backbone
    for seed in range(3):
        state = space.random(random.Random(seed))
        network = supernet.extracted(task.model, space, state).eval()
        assert network.neck.in_channels == list(space.arch(state)['widths'])
        backbone.select(space.arch(state), space.sources(state))
        with torch.no_grad():
            for ours, theirs in zip(network.extract_feat(x), task.model.extract_feat(x), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        backbone.select(None)


def test_training_that_was_interrupted_continues_with_the_same_weights(elastic):
    task, space = elastic
    other = copy.copy(task)
    other.model = copy.deepcopy(task.model)
    whole = Sandwich(task, space, steps=3, first=0)
    losses = list(whole.train())
    half = Sandwich(other, space, steps=3, first=0)
    next(half.train())
    state = copy.deepcopy(half.state())
    resumed = Sandwich(other, space, steps=3, first=0)
    resumed.restore(state)
    assert list(resumed.train()) == losses[1:]
    weights = task.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in other.model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_training_with_the_network_and_the_step(elastic, monkeypatch):
    task, space = elastic
    monkeypatch.setattr(task, 'loss', lambda *_: torch.tensor(float('nan'), requires_grad=True))
    with pytest.raises(UserError, match=r'loss of the largest network is nan in training step 1 of 3 of the supernet'):
        list(Sandwich(task, space, steps=3, first=0).train())


def test_statistics_of_a_selected_network_are_means_over_the_batches_and_leave_the_large_one_alone(elastic):
    task, space = elastic
    before, state = statistics(task.model), space.random(random.Random(1))
    evaluator = evaluate.Evaluator(task, space, first=0)
    arch, blocks = space.arch(state), space.blocks(state)
    alone = copy.deepcopy(task.model)
    alone.backbone = subnet(task.model.backbone.backbone, arch, blocks=blocks)
    # direct means over the batches, of an ordinary network and at the inputs of its norms
    sums = {}

    def add(module, inputs, _, name):
        x = inputs[0].double()
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
        total = sums.setdefault(name, [0, 0, 0])
        sums[name] = [total[0] + 1, total[1] + mean, total[2] + var]

    padded = copy.copy(task)
    padded.model = alone.train()
    for name, norm in alone.named_modules():
        if isinstance(norm, _BatchNorm):
            norm.register_forward_hook(lambda *args, name=name: add(*args, name=name))
    widths = task.model.backbone.backbone.out_channels
    alone.backbone.register_forward_hook(
        lambda _, __, maps: tuple(
            torch.nn.functional.pad(y, (0, 0, 0, 0, 0, width - y.shape[1]))
            for y, width in zip(maps, widths, strict=True)
        )
    )
    with torch.no_grad():
        for number, batch in enumerate(evaluator.calibration):
            padded.loss(batch, number)
    with evaluator.selected(state) as own:
        for name, (count, mean, var) in sums.items():
            if name.startswith('backbone.'):
                found = (own[f'{name.removeprefix("backbone.")}.running_{kind}'] for kind in ('mean', 'var'))
            else:
                norm = task.model.get_submodule(name)
                found = (norm.running_mean, norm.running_var)
            for ours, theirs in zip(found, (mean / count, var / count), strict=True):
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4, msg=name)
    assert len(own) > 20
    after = statistics(task.model)
    assert all(torch.equal(buffer, after[name]) for name, buffer in before.items())


def test_sorting_by_importance_changes_no_output_and_puts_the_important_channels_first(task, monkeypatch):
    before = copy.deepcopy(task.model.eval())
    seen = []
    monkeypatch.setattr(
        supernet, 'importance_of', lambda task, pools, settings, first: seen.append(pools) or Importance(pools, {
            pool: torch.randn(1, count, generator=torch.Generator().manual_seed(count)).double()
            for pool, count in pools.count.items()
        })
    )  # fmt: skip
    supernet.sort_(task, 0)
    x = torch.rand(1, 3, 75, 101)
    with torch.no_grad():
        for ours, theirs in zip(task.model.extract_feat(x), before.extract_feat(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    first = torch.randn(1, 64, generator=torch.Generator().manual_seed(64)).abs().argmax()
    ours, theirs = (model.backbone.stages[0].blocks[0].mlp.fc1.conv.weight for model in (task.model, before))
    assert torch.equal(ours[0].flatten().abs().sort()[0], theirs[first].flatten().abs().sort()[0])
