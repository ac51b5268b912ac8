"""The bias tables against loops, their cache, and the computation of the original dense code."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mmplugin.backbones.efficientvit_msra import WindowBias
from mmplugin.layers import OffsetBias, UpstreamBias


def looped(table: torch.Tensor, stride: int) -> torch.Tensor:
    """Compute a bias from its definition: table (heads, H, W) -> (heads, queries, keys)."""
    heads, height, width = table.shape
    queries = [(y, x) for y in range(0, height, stride) for x in range(0, width, stride)]
    keys = [(y, x) for y in range(height) for x in range(width)]
    bias = torch.empty(heads, len(queries), len(keys))
    for i, (qy, qx) in enumerate(queries):
        for j, (ky, kx) in enumerate(keys):
            bias[:, i, j] = table[:, abs(qy - ky), abs(qx - kx)]
    return bias


def filled(module: torch.nn.Module) -> torch.nn.Module:
    torch.nn.init.normal_(module.table)
    return module


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('height', 'width'), [(7, 7), (3, 11), (8, 5), (1, 9), (13, 1)])
def test_offsets_equal_loops_over_a_resized_table(height, width, stride):
    bias = filled(OffsetBias(2, 7, stride))
    table = bias.table.view(1, 2, 7, 7)
    # resizing one side at a time equals resizing an image whose corners stay in place
    resized = F.interpolate(table, size=(height, width), mode='bicubic', align_corners=True)[0]
    torch.testing.assert_close(bias(height, width), looped(resized, stride), atol=1e-5, rtol=0)


def test_at_the_pretraining_size_the_table_is_used_as_it_is():
    bias = filled(OffsetBias(3, 5))
    assert torch.equal(bias(5, 5), looped(bias.table.view(3, 5, 5), 1))


@pytest.mark.parametrize('stride', [1, 2])
def test_upstream_resizes_the_full_matrix(stride):
    bias = filled(UpstreamBias(2, 4, stride))
    matrix = looped(bias.table.view(2, 4, 4), stride)
    queries = len(range(0, 6, stride)) * len(range(0, 3, stride))
    expected = F.interpolate(matrix[None], size=(queries, 18), mode='bicubic')[0]
    torch.testing.assert_close(bias(6, 3), expected)


def test_a_window_table_shrinks_to_what_it_was_enlarged_from():
    bias, small = WindowBias(2, 7), torch.randn(2, 4, 4)
    enlarged = F.interpolate(small[None], size=(7, 7), mode='bicubic')[0]
    bias.load_state_dict({'table': enlarged.flatten(1)})
    torch.testing.assert_close(bias(4, 4), looped(small, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias(7, 7), looped(enlarged, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize('kind', [OffsetBias, UpstreamBias])
def test_the_cache_is_used_and_never_stale(kind):
    bias = filled(kind(2, 4))

    def fresh() -> torch.Tensor:
        other = kind(2, 4).to(bias.table.dtype)
        other.load_state_dict(bias.state_dict())
        return other(6, 5)

    with torch.no_grad():
        assert bias.offsets(6, 5) is bias.offsets(6, 5)
        assert len(bias._cache) == 1
        bias.load_state_dict({'table': torch.randn(2, 16)})
        assert torch.equal(bias(6, 5), fresh())
        bias.table.add_(1)
        assert torch.equal(bias(6, 5), fresh())
        bias.table.data = torch.randn(2, 16)
        assert torch.equal(bias(6, 5), fresh())
        bias.table.data.copy_(torch.randn(2, 16))  # as mmengine's EMAHook does, before the model goes to eval()
        assert torch.equal(bias.eval()(6, 5), fresh())
        bias.double()
        assert bias(6, 5).dtype == torch.float64
        assert torch.equal(bias(6, 5), fresh())
        twin = copy.deepcopy(bias)
        assert not twin._cache
        twin.table.zero_()
        assert bias(6, 5).abs().sum() > 0
        assert twin(6, 5).abs().sum() == 0
    bias(6, 5).sum().backward()  # with gradients the cache is not used
    assert bias.table.grad.abs().sum() > 0
    for size in range(2, 2 + 2 * kind.max_cached_sizes):
        with torch.no_grad():
            bias(size, 3) if kind is OffsetBias else bias(2, 3 + size % 3)
    assert len(bias._cache) <= kind.max_cached_sizes


def test_inference_mode_leaves_nothing_behind_that_breaks_training():
    bias = filled(OffsetBias(2, 4))
    with torch.inference_mode():
        bias(9, 6)
    bias(9, 6).sum().backward()
    assert bias.table.grad is not None
    with torch.no_grad():
        query = torch.randn(2, 54, 54)
    query.requires_grad_()
    bias.table.requires_grad_(False)
    (query * bias(9, 6)).sum().backward()
    assert query.grad is not None
