"""Softmax attention over a whole map whose memory grows with the number of pixels, not with its square.

A chunk is some rows of queries against all keys. ``LOGITS`` in a name below counts heads x queries x keys.

| Mode                                  | What runs                                                                    |
|---------------------------------------|------------------------------------------------------------------------------|
| Training, at most MAX_SAVED_LOGITS    | all rows at once; attention maps are saved for backward                      |
| Training, larger maps                 | chunks of MAX_LOGITS; backward computes the attention maps of a chunk again  |
| Inference, GPU or torch.jit.trace     | chunks of MAX_LOGITS                                                         |
| Inference, CPU                        | chunks of MAX_LOGITS_CPU_INFERENCE                                           |
| torch.compile, inference              | one custom operator, ``mmplugin::attend``, that runs the two rows above      |
| torch.compile, training               | all rows at once: a number of chunks would tie the graph to one size         |
| torch.export                          | all rows at once, one head after another unless heads talk                   |

Within a chunk, a GPU uses ``F.scaled_dot_product_attention`` unless heads talk; all else is plain matrix products. An
exported file reads the bias by an index, so keys and values keep their order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention_bias import OffsetBias, UpstreamBias, ceil_div

# Logits (all heads, a chunk of queries, all keys) of one image that are in memory at once; 4 M floats are 16 MB.
MAX_LOGITS = 4 * 2**20
# The same at inference on a CPU, for all images together: half a megabyte stays in its cache, while allocating large
# buffers again and again would cost as much as the work.
MAX_LOGITS_CPU_INFERENCE = 2**17
# Up to this many logits of all images (4 MB), saving attention maps for backward is faster than computing them again.
MAX_SAVED_LOGITS = 2**20


class TalkingHeads(NamedTuple):
    """The two linear layers that mix heads. The second has no bias here: ``attend`` adds its effect at the end."""

    before_weight: Tensor  # (heads, heads)
    before_bias: Tensor  # (heads, 1)
    after_weight: Tensor  # (heads, heads)


class _Geometry(NamedTuple):
    """How to read the bias of some queries out of its table."""

    by_offset: bool  # an OffsetBias, else an UpstreamBias
    stride: int  # distance of neighboring queries, in keys
    height: int  # of the map of keys
    width: int

    @property
    def row(self) -> int:
        """Return the number of queries in a row."""
        return ceil_div(self.width, self.stride)


def compiled_for_inference() -> bool:
    """Return whether torch.compile traces this for inference, so that custom operators may enter the graph.

    Under autograd they would need a backward, and an exported file has to run without this package.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not torch.is_grad_enabled()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: OffsetBias,
    size: Sequence[int],
    talking_heads: tuple[nn.Conv2d, nn.Conv2d] | None = None,
) -> Tensor:
    """Attend to all keys with a bias that depends on the offset between query and key.

    Args:
        q: Queries (B, heads, d, queries), row by row of the query map.
        k: Keys (B, heads, d, keys).
        v: Values (B, heads, e, keys).
        bias: The bias, which knows the distance between queries.
        size: Height and width of the map of keys.
        talking_heads: 1x1 convolutions that mix the heads before and after the softmax.

    Returns:
        A map (B, heads * e, query rows, query columns), channels last in memory.
    """
    geometry = _Geometry(bias.by_offset, bias.stride, *size)
    table = bias.offsets(*size)
    # With the keys in reverse order, the bias of a query is a view into the table.
    if bias.by_offset and not torch.compiler.is_exporting():
        k, v = k.flip(3), v.flip(3)
    heads = after_bias = None
    if talking_heads is not None:
        before, after = talking_heads
        assert before.bias is not None
        heads = TalkingHeads(before.weight.flatten(1), before.bias[:, None], after.weight.flatten(1))
        after_bias = after.bias
        if bias.by_offset:  # the first mixing is linear: apply it to the table instead of to every pair
            table = (heads.before_weight @ table.flatten(1) + heads.before_bias).view_as(table)
    if compiled_for_inference():
        x = _attend_operator(q, k, v, table, list(heads or ()), *geometry)
    elif torch.compiler.is_exporting() and heads is None:
        # A runtime keeps all that a node returns: maps of all heads have 140 MB where attention halves one of 50x84.
        parts = zip(q.split(1, 1), k.split(1, 1), v.split(1, 1), table.split(1), strict=True)
        x = torch.cat([_attend_rows(*part, None, geometry) for part in parts], 2)
    elif torch.compiler.is_compiling():
        x = _attend_rows(q, k, v, table, heads, geometry)
    else:
        x = _attend_in_chunks(q, k, v, table, heads, geometry)
    if after_bias is not None:
        # It adds a constant to every attention weight, i.e. that constant times the sum of the values, which may be
        # beyond the range of float16.
        total = v.sum(3, dtype=torch.promote_types(v.dtype, torch.float32))
        x = x + (total * after_bias[:, None])[:, None].to(x.dtype)
    return x.flatten(2).transpose(1, 2).unflatten(2, (q.shape[-1] // geometry.row, geometry.row))


def _attend_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, heads: TalkingHeads | None, geometry: _Geometry
) -> Tensor:
    """Return (B, queries, heads, e), a chunk at a time."""
    row, rows = geometry.row, q.shape[-1] // geometry.row
    training, limit = torch.is_grad_enabled(), MAX_LOGITS
    if q.is_cpu and not training and not torch.jit.is_tracing():  # a trace would hold every small chunk
        limit = MAX_LOGITS_CPU_INFERENCE // max(1, q.shape[0])
    chunk = max(1, limit // (q.shape[1] * row * k.shape[-1]))
    bounds = [(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]

    def arguments(start: int, stop: int) -> tuple:
        return q[..., start * row : stop * row], k, v, table, heads, geometry, start, stop

    save_maps = q.shape[:2].numel() * q.shape[-1] * k.shape[-1] <= MAX_SAVED_LOGITS
    if len(bounds) == 1 and (save_maps or not training):
        return _attend_rows(*arguments(0, rows))
    if training:
        return torch.cat([checkpoint(_attend_rows, *arguments(*bound), use_reentrant=False) for bound in bounds], 1)
    first = _attend_rows(*arguments(*bounds[0]))
    # One buffer for all results: small ones allocated between large temporaries would fragment the memory.
    result = first.new_empty(first.shape[0], q.shape[-1], *first.shape[2:])
    result[:, : first.shape[1]] = first
    for start, stop in bounds[1:]:
        result[:, start * row : stop * row] = _attend_rows(*arguments(start, stop))
    return result


@torch.library.custom_op('mmplugin::attend', mutates_args=())
def _attend_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    heads: list[Tensor],
    by_offset: bool,
    stride: int,
    height: int,
    width: int,
) -> Tensor:
    """Attend in chunks in a compiled graph too; faster than what inductor generates."""
    geometry = _Geometry(by_offset, stride, height, width)
    return _attend_in_chunks(q, k, v, table, TalkingHeads(*heads) if heads else None, geometry).contiguous()


@_attend_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[-1], q.shape[1], v.shape[2])


def _attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    heads: TalkingHeads | None,
    geometry: _Geometry,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Return (B, queries, heads, e) for the query rows from ``start`` to ``stop``, which are all of ``q``."""
    by_offset, stride, height, width = geometry
    rows = OffsetBias.rows if by_offset else UpstreamBias.rows
    bias = rows(table, height, width, stride, start, stop).to(q.dtype)
    q, v = q.transpose(2, 3), v.transpose(2, 3)  # (B, heads, queries, d), (B, heads, keys, e)
    if heads is None and not q.is_cpu:
        bias = bias.reshape(len(bias), q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k.transpose(2, 3), v, bias).transpose(1, 2)
    logits = q * q.shape[-1] ** -0.5 @ k  # (B, heads, queries, keys)
    if heads and by_offset:
        logits = _mix_heads(logits, heads.before_weight)
    pairs = logits.view(len(logits), *bias.shape)
    # In place only without autograd, which would have to undo the change of a view.
    logits = (pairs + bias if torch.is_grad_enabled() else pairs.add_(bias)).view_as(logits)
    if heads and not by_offset:
        logits = _mix_heads(logits, heads.before_weight) + heads.before_bias.to(logits.dtype)[:, :, None]
    attention = logits.softmax(-1)
    if heads:
        attention = _mix_heads(attention, heads.after_weight)
    return (attention @ v).transpose(1, 2)


def _mix_heads(maps: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution over the heads of (B, heads, queries, keys) as one matrix product."""
    return torch.bmm(weight.to(maps.dtype).expand(len(maps), -1, -1), maps.flatten(2)).view_as(maps)
