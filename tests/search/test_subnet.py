"""Sub-networks against the large network in which the removed channels are not read."""

import pytest
import torch

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError
from mmplugin.search.importance import BRANCHES
from mmplugin.search.pools import Pools
from mmplugin.search.slices import attention_counts
from mmplugin.search.space import Space, arch_with, sizes_of
from mmplugin.search.subnet import keep_logit_scale_, subnet, without_blocks_of

ARCHS = {
    'v1': dict(widths=(16, 24, 32, 48), depths=(1, 1, 2, 2), attention_blocks=1, key_dim=8, value_dim=16),
    'v2': dict(
        widths=(16, 24, 32, 40),
        depths=(1, 1, 2, 2),
        attention_blocks=(1, 2),
        ratios=((2,), (3,), (2, 4), (4, 3)),
        key_dim=8,
        value_dim=16,
    ),
    'evit': dict(widths=(32, 48, 64), depths=(1, 1, 2), heads=(2, 3, 2), kernels=(5, 3, 3), key_dims=(8, 8, 16)),
}
SMALLER = {  # by size; the widths of V1 are separate, because its layer norm sees removed channels
    'v1': {'hidden.0.0': 40, 'hidden.3.1': 72, 'key': 5, 'value': 8},
    'v2': {'hidden.2.0': 24, 'hidden.3.1': 40, 'key': 5, 'value': 9, 'width.0': 12, 'width.2': 24, 'width.3': 17},
    'evit': {
        'hidden.0.0': 24,
        'downsample.0.1': 40,
        'merge.0': 64,
        'key.1': 6,
        'key.2': 9,
        'width.1': 36,
        'width.2': 40,
    },
}


def build(family, arch=None, seed=0):
    """Build a network with random norms and without tiny layer scales."""
    torch.manual_seed(seed)
    backbone = FAMILIES[family](arch or ARCHS[family]).eval()
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return backbone


def random_kept(family, small, seed=1):
    large, small = Pools(family, ARCHS[family]), Pools(family, small)
    generator = torch.Generator().manual_seed(seed)
    return {
        pool: torch.randperm(large.count[pool], generator=generator)[:count].sort()[0]
        for pool, count in small.count.items()
        if count < large.count[pool]
    }


def unread_(backbone, family, kept):
    """Zero the weights that read the removed channels, and the queries that are removed."""
    pools = Pools(family, ARCHS[family])
    weights = backbone.state_dict()
    for key, axis in pools.inputs(weights):
        removed = torch.ones(weights[key].shape[1], dtype=torch.bool)
        removed[pools.indices(axis, kept)] = False
        weights[key][:, removed] = 0
    name = {'v1': r'qkv.3', 'v2': 'keys', 'evit': 'key'}[family]
    for key, weight in weights.items():
        axis = pools.axes_of(key, weight.shape)[0]
        is_query = {'v1': '.qkv.', 'v2': '.token_mixer.q.', 'evit': '.dws.'}[family] in key
        if is_query and axis.startswith(name) and not key.endswith(('running_mean', 'running_var', 'tracked')):
            removed = torch.ones(len(weight), dtype=torch.bool)
            removed[pools.indices(axis, kept)] = False
            if family == 'v1':  # queries, keys and values are rows of one matrix; values are read by the projection
                rows = [s.offset + i for s in pools.axes[axis] if 'value' in s.pool for i in range(pools.count[s.pool])]
                removed[rows] = False
            weight[removed] = 0


@pytest.mark.parametrize('family', FAMILIES)
def test_a_subnet_is_the_large_network_without_the_removed_channels(family):
    arch = arch_with(family, ARCHS[family], SMALLER[family])
    large, kept = build(family), random_kept(family, arch)
    small = subnet(large, arch, kept)
    keep_logit_scale_(small, large)
    unread_(large, family, kept)
    x = torch.rand(2, 3, 75, 101)
    pools = Pools(family, ARCHS[family])
    with torch.no_grad():
        for i, (ours, theirs) in enumerate(zip(small(x), large(x), strict=True)):
            theirs = theirs[:, pools.indices(f'width.{i}', kept)]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_widths_of_v1_without_attention():
    arch = dict(ARCHS['v1'], attention_blocks=0)
    small = arch_with('v1', arch, {'width.0': 12, 'width.1': 16, 'width.3': 40})
    large = build('v1', arch)
    assert [tuple(y.shape[1:2]) for y in subnet(large, small)(torch.rand(1, 3, 64, 64))] == [(12,), (16,), (32,), (40,)]


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('seed', range(3))
def test_subnets_of_random_archs_are_built_loaded_and_trained(family, seed):
    generator = torch.Generator().manual_seed(seed)
    space, sizes = Space.below(family, ARCHS[family], ['block']), sizes_of(family, ARCHS[family])
    for _ in range(int(torch.randint(1, 12, (), generator=generator))):
        actions = list(space.actions(sizes).values())
        if actions:
            sizes = actions[int(torch.randint(len(actions), (), generator=generator))]
    arch = space.arch(sizes)
    assert sizes_of(family, arch) == sizes
    large = build(family)
    small = subnet(large.train(), arch)
    outputs = small(torch.rand(2, 3, 65, 90))
    sum(y.square().mean() for y in outputs).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert tuple(y.shape[1] for y in outputs) == arch['widths']
    assert all(
        torch.equal(a, b) for a, b in zip(large.state_dict().values(), build(family).state_dict().values(), strict=True)
    )


@pytest.mark.parametrize('family', FAMILIES)
def test_every_weight_has_the_axes_that_its_shape_depends_on(family):
    """Increase one size: exactly the axes of the table change."""
    arch = FAMILIES[family].explicit(ARCHS[family])
    with torch.device('meta'):
        before = FAMILIES[family](arch).state_dict()
    pools = Pools(family, arch)
    for size, value in sizes_of(family, arch).items():
        if size.startswith('block'):
            continue
        step = 8 * arch['heads'][int(size.split('.')[1])] if family == 'evit' and size.startswith('width') else 8
        with torch.device('meta'):
            after = FAMILIES[family](arch_with(family, arch, {size: value + step})).state_dict()
        for key in before:
            for dim, axis in enumerate((*pools.axes_of(key, before[key].shape), None, None)[: before[key].dim()]):
                depends = bool(axis) and any(pools.sizes[s.pool][0] == size for s in pools.axes[axis])
                assert depends == (before[key].shape[dim] != after[key].shape[dim]), (size, key, dim)


def test_a_larger_arch_is_refused():
    with pytest.raises(UserError, match=r'no sub-network.*hidden.0.0: 80 of 64'):
        subnet(build('v1'), arch_with('v1', ARCHS['v1'], {'hidden.0.0': 80}))
    with pytest.raises(UserError, match=r'depths is \(1, 1, 3, 2\), but the large network has \(1, 1, 2, 2\)'):
        subnet(build('v1'), dict(ARCHS['v1'], depths=(1, 1, 3, 2)))


@pytest.mark.parametrize('family', FAMILIES)
def test_a_network_without_a_block_is_the_one_in_which_the_block_adds_nothing(family):
    large = build(family)
    last = len(ARCHS[family]['depths']) - 1
    arch = arch_with(family, ARCHS[family], {f'block.{last}.0': 0})
    small = without_blocks_of(large, [(last, 0)])
    assert small.explicit(small.settings) == small.explicit(arch)
    with torch.no_grad():
        for name, parameter in large.stages[last].blocks[0].named_parameters():
            if BRANCHES[family].match(name):
                parameter.zero_()
        x = torch.rand(1, 3, 70, 90)
        for one, other in zip(small(x), large(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_smallest_network_has_a_block_in_each_stage_and_runs(family):
    arch = Space.below(family, ARCHS[family]).smallest()
    assert set(arch['depths']) == {1}
    # attention stays only where all blocks have it
    assert attention_counts(family, arch) == {'v1': [0] * 4, 'v2': [0, 0, 0, 1], 'evit': [0] * 3}[family]
    FAMILIES[family](arch).eval()(torch.rand(1, 3, 64, 64))
