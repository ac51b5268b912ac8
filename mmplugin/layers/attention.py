"""Attention over whole maps whose memory grows with the number of pixels, not with its square."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention_bias import BIASES, OffsetBias

# Logits (all heads, a chunk of queries, all keys) of one image that are in memory at once; 4 M floats are 16 MB.
MAX_LOGITS = 4 * 2**20
# The same at inference on a CPU, of all images together: half a megabyte stays in its cache, and memory that is asked
# for anew at every step would cost as much as the work.
MAX_LOGITS_CPU_INFERENCE = 2**17
# Up to so many logits of all images, 4 MB, attention maps are kept for backward: computing them again takes longer.
MAX_KEPT_LOGITS = 2**20


class _Maps(NamedTuple):
    """What is known of the maps: which bias, how far apart its queries are, and the size of the map of keys."""

    kind: str
    stride: int
    height: int
    width: int

    @property
    def row(self) -> int:
        """Queries in a row."""
        return -(-self.width // self.stride)


def compiled_for_inference() -> bool:
    """Whether torch.compile traces this, neither for training nor for an export: operators of our own are allowed."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not torch.is_grad_enabled()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: OffsetBias,
    size: tuple[int, int],
    talking_heads: tuple[nn.Conv2d, nn.Conv2d] | None = None,
) -> Tensor:
    """Softmax attention with a bias by offset, over chunks of query rows.

    For backward, only the arguments are kept; attention maps are computed again, but for small ones.

    Args:
        q: Queries (B, heads, d, queries), in rows of the query map.
        k: Keys (B, heads, d, keys).
        v: Values (B, heads, e, keys).
        bias: The bias, which knows the distance between queries.
        size: Height and width of the map of keys.
        talking_heads: Mix the heads before and after the softmax.

    Returns:
        A map (B, heads * e, queries in rows, queries in columns), channels last in memory
    """
    maps = _Maps(bias.kind, bias.stride, *size)
    offsets = bias.offsets(*size)
    if bias.by_offset:  # in this order the bias of a query is a view into the table
        k, v = k.flip(3), v.flip(3)
    mixing: list[Tensor] = []
    if talking_heads is not None:
        before, after = talking_heads
        mixing = [before.weight.flatten(1), before.bias[:, None], after.weight.flatten(1)]
        if bias.by_offset:  # the first mixing is linear, so it may act on the table instead of on every pair
            offsets = (mixing[0] @ offsets.flatten(1) + mixing[1]).view_as(offsets)
    if compiled_for_inference():
        x = _opaque(q, k, v, offsets, mixing, *maps)
    elif torch.compiler.is_compiling():  # all at once: a number of chunks in the graph would tie it to one size
        x = _attend_rows(q, k, v, offsets, mixing, maps)
    else:
        x = _in_chunks(q, k, v, offsets, mixing, maps)
    if talking_heads is not None:  # what the last mixing adds to all pairs, every key's value gets as much of
        x = x + (v.sum(3) * after.bias[:, None])[:, None].to(x.dtype)
    return x.flatten(2).transpose(1, 2).unflatten(2, (q.shape[-1] // maps.row, maps.row))


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mixing: list[Tensor], maps: _Maps) -> Tensor:
    """(B, queries, heads, e)"""
    rows = q.shape[-1] // maps.row
    learning, limit = torch.is_grad_enabled(), MAX_LOGITS
    if q.is_cpu and not learning and not torch.jit.is_tracing():  # a trace holds every chunk
        limit = MAX_LOGITS_CPU_INFERENCE // q.shape[0]
    chunk = max(1, limit // (q.shape[1] * maps.row * k.shape[-1]))
    bounds = [(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]

    def arguments(start: int, stop: int) -> tuple:
        return q[..., start * maps.row : stop * maps.row], k, v, offsets, mixing, maps, start, stop

    if len(bounds) == 1 and not (learning and q.shape[:2].numel() * q.shape[-1] * k.shape[-1] > MAX_KEPT_LOGITS):
        return _attend_rows(*arguments(0, rows))
    if learning:
        parts = [checkpoint(_attend_rows, *arguments(*bound), use_reentrant=False) for bound in bounds]
        return torch.cat(parts, 1)
    first = _attend_rows(*arguments(*bounds[0]))
    # one result for all: small ones, kept between large temporaries, would leave the memory in pieces
    whole = first.new_empty(first.shape[0], q.shape[-1], *first.shape[2:])
    whole[:, : first.shape[1]] = first
    for start, stop in bounds[1:]:
        whole[:, start * maps.row : stop * maps.row] = _attend_rows(*arguments(start, stop))
    return whole


@torch.library.custom_op('mmplugin::attend', mutates_args=())
def _opaque(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mixing: list[Tensor],
    kind: str,
    stride: int,
    height: int,
    width: int,
) -> Tensor:
    """For torch.compile at inference: in chunks here as well, and in less time than what inductor makes of it."""
    return _in_chunks(q, k, v, offsets, mixing, _Maps(kind, stride, height, width)).contiguous()


@_opaque.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[-1], q.shape[1], v.shape[2])


def _attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mixing: list[Tensor],
    maps: _Maps,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """(B, queries, heads, e)"""
    bias = BIASES[maps.kind]
    table = bias.rows(offsets, maps.height, maps.width, maps.stride, start, stop).to(q.dtype)
    q, v = q.transpose(2, 3), v.transpose(2, 3)
    if not mixing and q.device.type != 'cpu':
        table = table.reshape(len(table), q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k.transpose(2, 3), v, table).transpose(1, 2)
    logits = q * q.shape[-1] ** -0.5 @ k
    if mixing and bias.by_offset:
        logits = _mix(logits, mixing[0])
    pairs = logits.view(len(logits), *table.shape)
    # in place only where autograd does not look: it would have to undo the change of a view
    logits = (pairs + table if torch.is_grad_enabled() else pairs.add_(table)).view_as(logits)
    if mixing and not bias.by_offset:
        logits = _mix(logits, mixing[0]) + mixing[1].to(logits.dtype)[:, :, None]
    attention = logits.softmax(-1)
    if mixing:
        attention = _mix(attention, mixing[2])
    return (attention @ v).transpose(1, 2)


def _mix(maps: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution over the heads as one matrix product."""
    return torch.bmm(weight.to(maps.dtype).expand(len(maps), -1, -1), maps.flatten(2)).view_as(maps)
