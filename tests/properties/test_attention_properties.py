"""Bias tables against their definition, and attention in chunks against attention at once."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.strategies import SEEDS, tensor

from mmplugin.layers import attend, attention
from mmplugin.layers.attention_bias import OffsetBias, UpstreamBias

SIDES, GRIDS, STRIDES = st.integers(1, 9), st.integers(1, 8), st.sampled_from((1, 2))


def filled(kind: type, heads: int, grid: int, stride: int, seed: int) -> OffsetBias:
    bias = kind(heads, grid, stride)
    with torch.no_grad():
        bias.table.copy_(tensor(seed, heads, grid * grid))
    return bias


def slow_bias(table: torch.Tensor, height: int, width: int, stride: int) -> torch.Tensor:
    """Look up each pair of query and key in a table (heads, |dy|, |dx|), one number at a time."""
    queries = [(y, x) for y in range(0, height, stride) for x in range(0, width, stride)]
    keys = [(y, x) for y in range(height) for x in range(width)]
    rows = [[table[:, abs(qy - ky), abs(qx - kx)] for ky, kx in keys] for qy, qx in queries]
    return torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1)


def resized(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize both axes of a table by torch's own interpolation."""
    return F.interpolate(table[None].double(), size=(height, width), mode='bicubic', align_corners=True)[0]


@given(height=SIDES, width=SIDES, grid=GRIDS, stride=STRIDES, seed=SEEDS)
def test_offset_bias_is_the_resized_table_looked_up_by_offset(height, width, grid, stride, seed):
    bias = filled(OffsetBias, 2, grid, stride, seed)
    table = resized(bias.table.detach().view(2, grid, grid), height, width)
    for _ in range(2):  # the second time from the cache
        with torch.no_grad():
            found = bias(height, width)
        torch.testing.assert_close(found.double(), slow_bias(table, height, width, stride), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias(height, width), found)


@given(height=SIDES, width=SIDES, grid=st.integers(1, 6), stride=STRIDES, seed=SEEDS)
def test_upstream_bias_is_the_resized_matrix_of_its_own_grid(height, width, grid, stride, seed):
    bias = filled(UpstreamBias, 2, grid, stride, seed)
    matrix = slow_bias(bias.table.detach().view(2, grid, grid), grid, grid, stride)
    queries = -(-height // stride) * -(-width // stride)
    wanted = F.interpolate(matrix[None], size=(queries, height * width), mode='bicubic', align_corners=False)[0]
    torch.testing.assert_close(bias(height, width).detach(), wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(
    height=SIDES,
    width=SIDES,
    batch=st.integers(1, 3),
    stride=STRIDES,
    kind=st.sampled_from((OffsetBias, UpstreamBias)),
    talk=st.booleans(),
    limit=st.integers(1, 3000),
    seed=SEEDS,
)
def test_attention_in_chunks_equals_attention_at_once(height, width, batch, stride, kind, talk, limit, seed):
    heads, keys, queries = 2, height * width, -(-height // stride) * -(-width // stride)
    bias = filled(kind, heads, 4, stride, seed)
    torch.manual_seed(seed)
    mixers = (torch.nn.Conv2d(heads, heads, 1), torch.nn.Conv2d(heads, heads, 1)) if talk else None
    q, k, v = (tensor(seed + i, batch, heads, 4, n).requires_grad_() for i, n in enumerate((queries, keys, keys)))

    def run(limits: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
        names = ('MAX_LOGITS', 'MAX_LOGITS_CPU_INFERENCE', 'MAX_SAVED_LOGITS')
        before = [getattr(attention, name) for name in names]
        try:
            for name, value in zip(names, limits, strict=True):
                setattr(attention, name, value)
            recorded = attend(q, k, v, bias, (height, width), mixers)
            with torch.no_grad():
                inferred = attend(q, k, v, bias, (height, width), mixers)
            return recorded, inferred, *torch.autograd.grad(recorded.square().sum(), (q, k, v, bias.table))
        finally:
            for name, value in zip(names, before, strict=True):
                setattr(attention, name, value)

    for a, b in zip(run((limit, limit, 0)), run((2**40,) * 3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
