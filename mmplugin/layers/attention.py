"""Attention over whole maps whose memory grows with the number of pixels, not with its square."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention_bias import OffsetBias

# Logits (all heads, a chunk of queries, all keys) of one image that are in memory at once; 4 M floats are 16 MB.
MAX_LOGITS = 4 * 2**20


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: OffsetBias,
    size: tuple[int, int],
    talking_heads: tuple[nn.Conv2d, nn.Conv2d] | None = None,
) -> Tensor:
    """Softmax attention with a bias by offset, over chunks of query rows.

    For backward, only the arguments are kept; the attention maps are computed again.

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
    height, width = size
    row = -(-width // bias.stride)  # queries in a row
    rows = q.shape[-1] // row
    offsets = bias.offsets(height, width)
    if talking_heads is not None and bias.by_offset:
        # The first mixing is linear, so it may act on the table instead of on every pair.
        before = talking_heads[0]
        mixed = before.weight.flatten(1) @ offsets.flatten(1) + before.bias[:, None]
        offsets = mixed.view_as(offsets)
    if torch.compiler.is_compiling():  # all at once: a number of chunks in the graph would tie it to one size
        x = _attend_rows(q, k, v, offsets, bias, size, 0, None, talking_heads)
    else:
        chunk = max(1, MAX_LOGITS // (q.shape[1] * row * k.shape[-1]))
        outputs = []
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            arguments = (q[..., start * row : stop * row], k, v, offsets, bias, size, start, stop, talking_heads)
            recompute = torch.is_grad_enabled()
            outputs.append(
                checkpoint(_attend_rows, *arguments, use_reentrant=False) if recompute else _attend_rows(*arguments)
            )
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return x.flatten(2).transpose(1, 2).unflatten(2, (rows, row))


def _attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: OffsetBias,
    size: tuple[int, int],
    start: int,
    stop: int | None,
    talking_heads: tuple[nn.Conv2d, nn.Conv2d] | None,
) -> Tensor:
    """(B, queries, heads, e)"""
    table = bias.expand(offsets, *size, start, stop).to(q.dtype)  # (heads, queries, keys)
    q, k, v = q.transpose(2, 3), k, v.transpose(2, 3)
    if talking_heads is None:
        return F.scaled_dot_product_attention(q, k.transpose(2, 3), v, table).transpose(1, 2)
    before, after = talking_heads
    logits = q * q.shape[-1] ** -0.5 @ k
    if bias.by_offset:
        logits = _mix(logits, before.weight, table)
    else:
        logits = _mix(logits + table, before.weight, before.bias.view(-1, 1, 1))
    return (_mix(logits.softmax(-1), after.weight, after.bias.view(-1, 1, 1)) @ v).transpose(1, 2)


def _mix(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution over the heads as one matrix product; ``bias`` (heads, queries, keys) or (heads, 1, 1)."""
    weight, bias = weight.to(maps.dtype), bias.to(maps.dtype)
    mixed = torch.baddbmm(bias.flatten(1), weight.flatten(1).expand(len(maps), -1, -1), maps.flatten(2))
    return mixed.view_as(maps)
