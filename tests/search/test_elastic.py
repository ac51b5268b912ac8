"""The supernet against separately built networks: what is searched is what is extracted, in bits and gradients."""

import random
from types import SimpleNamespace

import pytest
import torch

from mmplugin.backbones import FAMILIES, EfficientFormerV2
from mmplugin.errors import UserError
from mmplugin.search.elastic import ElasticBackbone
from mmplugin.search.pools import Pools
from mmplugin.search.slices import attention_counts
from mmplugin.search.space import arch_with, sizes_of
from mmplugin.search.subnet import subnet
from mmplugin.search.supernet import elastic_space_of

ARCHS = {
    'v1': dict(widths=(16, 24, 32, 48), depths=(2, 1, 3, 3), attention_blocks=2, key_dim=8, value_dim=16),
    'v2': dict(
        widths=(16, 24, 32, 40), depths=(2, 1, 3, 3), attention_blocks=(2, 3), hidden=((48, 64), (72,), (96,) * 3,
        (120, 80, 160)), key_dim=8, value_dim=16,
    ),
    'evit': dict(widths=(32, 48, 64), depths=(2, 1, 2), heads=(2, 3, 2), kernels=(5, 3, 3), key_dims=(8, 8, 16)),
}  # fmt: skip
SIZES = ((64, 64), (65, 90), (75, 101))


def build(family, **changes):
    """Build a network with random norms and without tiny layer scales."""
    torch.manual_seed(0)
    backbone = FAMILIES[family](ARCHS[family], **changes)
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return backbone


def random_subnet(family, seed):
    """Return an arch with other widths, hidden channels and blocks, and its blocks in the large network."""
    rng, large = random.Random(seed), FAMILIES[family].explicit(ARCHS[family])
    sizes = sizes_of(family, large)
    for size in sizes:
        kind, _, place = size.partition('.')
        step = large['heads'][int(place)] if (family, kind) == ('evit', 'width') else 1
        most = sizes[size] // step
        sizes[size] = step * rng.randint(-(-most // 2), most)
    for size in [size for size in sizes if size.startswith('block')]:
        sizes[size] = int(size.endswith('.0') or rng.random() < 0.7)
    if family == 'evit':
        sizes['width.0'] = 24  # the stem starts with an eighth
    blocks = [[j for j in range(depth) if sizes[f'block.{i}.{j}']] for i, depth in enumerate(large['depths'])]
    return arch_with(family, large, sizes), blocks


def backward(maps):
    sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in maps).backward()


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('family', FAMILIES)
def test_a_selected_network_equals_the_extracted_one_and_the_class_itself(family, seed):
    large = build(family).eval()
    elastic, (arch, blocks) = ElasticBackbone(large).eval(), random_subnet(family, seed)
    small = subnet(large, arch, blocks=blocks)
    alone = FAMILIES[family](arch).eval()
    alone.load_state_dict(small.state_dict(), strict=True)
    elastic.select(arch, blocks)
    x = torch.rand(1, 3, *SIZES[seed % 3])
    with torch.no_grad():
        for ours, theirs, third in zip(elastic(x), small(x), alone(x), strict=True):
            assert torch.equal(ours[:, : theirs.shape[1]], theirs)
            assert not ours[:, theirs.shape[1] :].any()
            assert torch.equal(theirs, third)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_of_a_selected_network_are_those_of_the_extracted_one_and_zero_elsewhere(family, training):
    large = build(family).train(training)
    before = {name: buffer.clone() for name, buffer in large.named_buffers()}
    elastic, (arch, blocks) = ElasticBackbone(large).train(training), random_subnet(family, 7)
    small = subnet(large, arch, blocks=blocks)
    elastic.select(arch, blocks)
    x = torch.rand(2, 3, 70, 90)
    backward(small(x))
    backward(y[:, :width] for y, width in zip(elastic(x), small.out_channels, strict=True))
    # what the sub-network's gradients are in the place of the large network's weights
    expected = subnet_gradients(large, arch, blocks, small)
    for name, parameter in large.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.equal(grad, expected[name]), name
    assert all(torch.equal(buffer, before[name]) for name, buffer in large.named_buffers())


def subnet_gradients(large, arch, blocks, small):
    """Scatter gradients into zeros of the large network's shapes, by numbering all its weights."""
    numbered, count = type(large)(large.settings).double(), 0
    with torch.no_grad():
        for tensor in (*numbered.parameters(), *numbered.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(count, count + tensor.numel()).view(tensor.shape))
                count += tensor.numel()
    flat = torch.zeros(count)
    for (_, numbers), parameter in zip(
        subnet(numbered, arch, blocks=blocks).named_parameters(), small.parameters(), strict=True
    ):
        flat[numbers.detach().long()] = parameter.grad
    return {name: flat[parameter.detach().long()] for name, parameter in numbered.named_parameters()}


def test_heads_of_evit_read_their_own_shares():
    large = build('evit')
    arch = arch_with('evit', ARCHS['evit'], {'width.1': 24})
    small = subnet(large, arch)
    own, theirs = large.state_dict(), small.state_dict()
    share, kept, heads, keys = 16, 8, 3, 8
    for h in range(heads):
        name = f'stages.1.blocks.0.mixer.qkvs.{h}.conv.weight'
        assert torch.equal(theirs[name], torch.cat([own[name][: 2 * keys], own[name][2 * keys :][:kept]])[:, :kept])
        rows = theirs['stages.1.blocks.0.mixer.proj.conv.weight'][:, h * kept : (h + 1) * kept]
        for g in range(heads):
            source = own['stages.1.blocks.0.mixer.proj.conv.weight'][g * share : g * share + kept]
            assert torch.equal(rows[g * kept : (g + 1) * kept], source[:, h * share : h * share + kept])


@pytest.mark.parametrize('family', FAMILIES)
def test_sorted_channels_compute_the_same(family):
    large, pools = build(family).double().eval(), Pools(family, ARCHS[family])
    torch.manual_seed(1)
    order = {pool: torch.randperm(count) for pool, count in pools.count.items()}
    ordered = subnet(large, ARCHS[family], order)
    x = torch.rand(1, 3, 75, 101).double()
    with torch.no_grad():
        for i, (ours, theirs) in enumerate(zip(ordered(x), large(x), strict=True)):
            torch.testing.assert_close(ours, theirs[:, pools.indices(f'width.{i}', order)], rtol=1e-8, atol=1e-8)


def test_the_output_norm_of_v1_sees_only_the_channels_of_the_sub_network():
    large = build('v1', out_norm=True).eval()
    elastic = ElasticBackbone(large).eval()
    arch = arch_with('v1', ARCHS['v1'], {'width.2': 16})
    elastic.select(arch)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = elastic(x)[2], subnet(large, arch)(x)[2]
    assert torch.equal(ours[:, :16], theirs)
    assert ours[:, 16:].abs().sum() == 0


@pytest.mark.parametrize('family', FAMILIES)
def test_a_weight_update_is_seen_by_the_next_evaluation(family):
    large = build(family).eval()
    elastic, (arch, blocks) = ElasticBackbone(large).eval(), random_subnet(family, 3)
    elastic.select(arch, blocks)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = elastic(x)
        for parameter in large.parameters():
            parameter.mul_(0.9)
        after, expected = elastic(x), subnet(large, arch, blocks=blocks)(x)
    assert not torch.equal(before[-1], after[-1])
    assert all(torch.equal(a[:, : b.shape[1]], b) for a, b in zip(after, expected, strict=True))


def test_names_of_weights_are_those_of_the_backbone():
    large = build('v2')
    assert ElasticBackbone(large).state_dict().keys() == large.state_dict().keys()


def test_blocks_that_the_large_network_cannot_give_are_refused():
    small = FAMILIES['v2'].explicit(dict(ARCHS['v2'], depths=(1, 1, 2, 3), hidden=((48,), (72,), (96,) * 2, (80,) * 3)))
    with pytest.raises(
        UserError, match=r'block 0 of the sub-network has attention, block 0 of the large network has no'
    ):
        subnet(build('v2'), small, blocks=((0,), (0,), (0, 1), (0, 1, 2)))
    with pytest.raises(UserError, match=r'blocks of stage 1 is \[2\]; allowed: 1 different numbers from 0 to 1'):
        subnet(build('v2'), small, blocks=((2,), (0,), (1, 2), (0, 1, 2)))
    assert attention_counts('v2', small) == [0, 0, 2, 3]
    with pytest.raises(UserError, match=r'set model\.backbone\.with_cp=False'):
        ElasticBackbone(build('v2', with_cp=True))


def test_stages_that_are_not_built_are_not_searched():
    model = SimpleNamespace(backbone=EfficientFormerV2('s0', out_indices=(0, 1, 2)), neck=None)
    own = elastic_space_of(model)
    sizes = [size.split('.') for size in own.actions(own.largest())]
    assert {stage for kind, stage, *_ in sizes if kind != 'width'} == {'0', '1', '2'}
