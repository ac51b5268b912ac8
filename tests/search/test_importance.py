"""Importance by Taylor expansion against removal, and the order of removal against exhaustive search."""

import itertools

import pytest
import torch
from torch import nn

from mmplugin.backbones import FAMILIES
from mmplugin.search.importance import Importance, at_random, magnitude, taylor
from mmplugin.search.narrow import narrow_, readers_of
from mmplugin.search.objective import plan
from mmplugin.search.pools import Pools
from mmplugin.search.space import Space, arch_with, sizes_of
from tests.search.test_subnet import ARCHS, build


class Regressor(nn.Module):
    """A backbone and a linear map of its mean features."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(sum(backbone.out_channels), 3)

    def forward(self, x):
        return self.head(torch.cat([y.mean((2, 3)) for y in self.backbone(x)], 1))


def batches(count, size=48):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(2, 3, size, size, generator=generator), torch.rand(2, 3, generator=generator)) for _ in range(count)
    ]


def loss_of(model):
    return lambda batch: (model(batch[0]) - batch[1]).square().sum()


@pytest.mark.parametrize('family', FAMILIES)
def test_gates_are_the_derivatives_by_factors_of_what_reads_a_channel(family):
    """Finite differences of the loss, in float64, where the readers of one channel are scaled."""
    model = Regressor(build(family)).double().eval()
    pools, batch = Pools(family, ARCHS[family]), [t.double() for t in batches(1)[0]]
    scores = taylor(model, pools, {}, [batch], loss_of(model))
    weights, step = {key: value.clone() for key, value in model.backbone.state_dict().items()}, 1e-5
    hidden = next(pool for pool in pools.sizes if pool.startswith('hidden'))
    value = next((pool for pool in pools.sizes if pool.startswith('value')), 'share.1')
    for pool, channel in ((hidden, 3), (value, 1), ('stem.1', 2)):
        readers = [key for key, axis in pools.inputs(weights) if any(s.pool == pool for s in pools.axes[axis])]
        losses = []
        for factor in (1 + step, 1 - step):
            changed = {key: tensor.clone() for key, tensor in weights.items()}
            for key in readers:
                for segment in pools.axes[pools.axes_of(key, weights[key].shape)[1]]:
                    if segment.pool == pool:
                        changed[key][:, segment.offset + channel] *= factor
            model.backbone.load_state_dict(changed)
            with torch.no_grad():
                losses.append(float(loss_of(model)(batch)))
        model.backbone.load_state_dict(weights)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(scores.gates[pool][0, channel]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


QUERIES = {  # pool of keys, the module whose output has the queries, and the channel of the pool in it
    'v1': ('key.3.1.2', 'stages.3.blocks.1.token_mixer.qkv', lambda size, heads: 2 * (heads // 8)),
    'v2': ('key.3.1.2', 'stages.3.blocks.1.token_mixer.q', lambda size, heads: 2 * size),
    'evit': ('key.1.0.2', 'stages.1.blocks.0.mixer.dws.2', lambda size, heads: 0),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_gates_of_keys_are_the_derivatives_by_factors_of_the_queries(family):
    """A product of queries and keys loses a channel when the queries have none there."""
    model = Regressor(build(family)).double().eval()
    pools, batch, step = Pools(family, ARCHS[family]), [t.double() for t in batches(1)[0]], 1e-5
    pool, name, offset = QUERIES[family]
    gates = taylor(model, pools, {}, [batch], loss_of(model)).gates[pool][0]
    module = model.backbone.get_submodule(name)

    def loss_with(channel, factor):
        def scale(module, args, output):
            dim = -1 if family == 'v1' else 1  # tokens, or maps
            index = offset(pools.count[pool], output.shape[dim]) + channel
            output = output.clone()
            output.select(dim, index).mul_(factor)
            return output

        hook = module.register_forward_hook(scale)
        with torch.no_grad():
            loss = float(loss_of(model)(batch))
        hook.remove()
        return loss

    for channel in (0, 3):
        slope = (loss_with(channel, 1 + step) - loss_with(channel, 1 - step)) / (2 * step)
        assert float(gates[channel]) == pytest.approx(slope, rel=1e-3, abs=1e-9)
    assert slope != 0


@pytest.mark.parametrize('family', FAMILIES)
def test_dead_channels_leave_first(family):
    model = Regressor(build(family)).eval()
    pools, dead = Pools(family, ARCHS[family]), [1, 4, 9]
    weights = model.backbone.state_dict()
    (key, pool), *_ = [(k, a) for k, a in pools.inputs(weights) if a.startswith('hidden')]
    weights[key][:, dead] = 0
    for scores in (taylor(model, pools, {}, batches(3), loss_of(model)), magnitude(model, pools, {})):
        useless = int((scores.gates[pool].square().mean(0) == 0).sum())  # ReLU may have switched others off
        assert set(dead) <= set(scores.orders[pool][:useless].tolist())
        assert useless < pools.count[pool]


def test_on_a_linear_network_the_score_is_the_squared_change_of_the_loss_to_first_order():
    torch.manual_seed(0)
    weight, x = torch.rand(1, 16, requires_grad=True, dtype=torch.float64), torch.rand(16, dtype=torch.float64)
    (weight @ x).sum().backward()
    gates = {'hidden': (weight * weight.grad).detach()}
    pools = Pools.__new__(Pools)
    pools.sizes, pools.count = {'hidden': ('hidden', 1)}, {'hidden': 16}
    scores = Importance(pools, gates)
    removed = scores.orders['hidden'][:8]
    with torch.no_grad():
        change = (weight[:, removed] @ x[removed]).sum()
    assert scores.of_group('hidden', 16, 8) == pytest.approx(float(change**2))


def kendall(a, b):
    pairs = list(itertools.combinations(range(len(a)), 2))
    return sum(1 if (a[i] - a[j]) * (b[i] - b[j]) > 0 else -1 for i, j in pairs) / len(pairs)


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_taylor_ranks_groups_as_their_removal_does(seed):
    """Kendall's tau with the true change of the loss, on a network that was trained for a moment."""
    arch = dict(ARCHS['v2'], depths=(1, 1, 1, 1), attention_blocks=0, ratios=((4,),) * 4)
    model = Regressor(build('v2', arch, seed))
    data, loss = batches(8), loss_of(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(8):
        for batch in data:
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    pools = Pools('v2', arch)
    scores, baseline = taylor(model, pools, {}, data, loss), magnitude(model, pools, {})
    weights = model.backbone.state_dict()

    def mean_loss():
        with torch.no_grad():
            return sum(float(loss(batch)) for batch in data) / len(data)

    before, found, by_magnitude, changes = mean_loss(), [], [], []
    for key, pool in pools.inputs(weights):
        if pool.startswith('hidden'):
            for start in range(0, pools.count[pool], 8):
                group, saved = slice(start, start + 8), weights[key][:, start : start + 8].clone()
                weights[key][:, group] = 0
                changes.append(abs(mean_loss() - before))
                weights[key][:, group] = saved
                found.append(float(scores.gates[pool][:, group].sum(1).square().mean()))
                by_magnitude.append(float(baseline.gates[pool][:, group].sum()))
    assert kendall(found, changes) >= 0.5
    assert kendall(found, changes) > kendall(by_magnitude, changes)


class Planted:
    """Importance of each group of a size, in the order in which groups leave."""

    def __init__(self, drops):
        self.drops = drops

    def of_group(self, size, before, after):
        return self.drops[size, before]


def planted(seed, convex):
    """Return a space of 8 sizes with 4 levels, costs, and drops that are separable."""
    generator = torch.Generator().manual_seed(seed)
    arch = dict(widths=(32, 32, 32, 32), depths=(2, 2, 2, 2), attention_blocks=0, hidden=((32, 32),) * 4)
    space = Space.below('v1', arch, ['width', 'block'])
    sizes = sizes_of('v1', arch)
    gains = {size: float(torch.rand((), generator=generator)) + 0.2 for size in sizes if size.startswith('hidden')}
    drops = {}
    for size in gains:
        values = torch.rand(3, generator=generator)
        for level, value in zip((32, 24, 16), (values.sort()[0] if convex else values).tolist(), strict=True):
            drops[size, level] = value
    return space, sizes, gains, drops


def total_drop(sizes, drops):
    return sum(value for (size, level), value in drops.items() if sizes[size] < level)


def best(gains, drops, limit):
    """Return the smallest drop within the limit, of all 65,536 networks."""
    costs, totals = torch.full((1,), 10.0), torch.zeros(1)
    for size, gain in gains.items():
        levels = torch.tensor([8, 16, 24, 32])
        own = torch.tensor([sum(drops[size, above] for above in (32, 24, 16) if level < above) for level in levels])
        costs = (costs[:, None] + gain * levels / 8).flatten()
        totals = (totals[:, None] + own).flatten()
    return float(totals[costs <= limit + 1e-4].min())


def test_greedy_comes_close_to_the_optimum_of_planted_spaces_and_beats_random_removal():
    close = better = 0
    for seed in range(40):
        space, sizes, gains, drops = planted(seed, convex=True)

        def cost(sizes, gains=gains):
            return 10 + sum(gain * sizes[size] / 8 for size, gain in gains.items())

        limit = cost(sizes) - 0.4 * (cost(sizes) - 10)
        greedy, actions = plan(space, sizes, Planted(drops), cost, limit)
        assert cost(greedy) <= limit
        assert sum(action.gain for action in actions) == pytest.approx(cost(sizes) - cost(greedy))
        optimum = best(gains, drops, limit)
        most = sum(drops.values())
        close += total_drop(greedy, drops) - optimum <= 0.05 * most
        generator = torch.Generator().manual_seed(seed)
        random_scores = Planted({key: float(torch.rand((), generator=generator)) for key in drops})
        arbitrary, _ = plan(space, sizes, random_scores, cost, limit, by_latency=False)
        better += total_drop(greedy, drops) < total_drop(arbitrary, drops)
    assert close >= 36
    assert better >= 34


def test_groups_that_save_nothing_stay():
    space, sizes, _, drops = planted(0, convex=True)
    result, actions = plan(space, sizes, Planted(drops), lambda sizes: 1.0, 0.5)
    assert (result, actions) == (sizes, [])


def test_random_scores_depend_on_the_seed_only():
    pools = Pools('v2', ARCHS['v2'])
    assert torch.equal(at_random(pools, 3).gates['hidden.0.0'], at_random(pools, 3).gates['hidden.0.0'])


@pytest.mark.parametrize('family', FAMILIES)
def test_a_neck_reads_the_channels_that_stay(family):
    from mmdet.models.necks import FPN

    from mmplugin.necks import UpsampledFPN

    backbone = build(family)
    if family == 'evit':
        neck = UpsampledFPN(list(backbone.out_channels), backbone.out_strides, 8, (8, 16, 32, 64, 128), 'on_input')
        change = {'width.1': 24}
    else:
        neck = FPN(list(backbone.out_channels), 8, 6, start_level=1, add_extra_convs='on_input')
        change = {'width.3': 24}
    model = nn.Module()
    model.backbone, model.neck = backbone, neck.eval()
    pools, arch = Pools(family, ARCHS[family]), arch_with(family, ARCHS[family], change)
    readers = readers_of(model)
    assert set(readers.values()) >= {'width.1', 'width.2'}
    scores = at_random(pools, 0)
    kept = scores.kept(sizes_of(family, arch))
    maps = backbone(torch.rand(1, 3, 96, 128))
    with torch.no_grad():
        for key, axis in readers.items():  # what reads removed channels is zero: the neck must not change
            removed = torch.ones(pools.indices(axis, {}).numel(), dtype=torch.bool)
            removed[pools.indices(axis, kept)] = False
            model.get_parameter(key)[:, removed] = 0
        before = neck(maps)
        narrow_(model, pools, arch, kept)
        after = model.neck([y[:, pools.indices(f'width.{i}', kept)] for i, y in enumerate(maps)])
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert tuple(y.shape[1] for y in model.backbone(torch.rand(1, 3, 64, 64))) == arch['widths']
