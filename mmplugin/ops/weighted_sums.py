"""Weighted sums of pixels: the kernel of RoIAlign and deformable convolution.

Each output row (a RoI bin, a kernel tap) is a weighted sum of a few pixels, a row of a sparse matrix. ``embedding_bag``
computes the product with this matrix: it is vectorized over channels, multi-threaded, and never stores the single
products. The gradient is the product with the transposed matrix, so the same kernel computes it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# The kernel needs a channels-last copy of the pixels: 140 MB for a stride 4 level of two images. Slices of channels are
# small enough for malloc to keep and reuse their memory.
SLICE_BYTES = 24 << 20
MIN_SLICE = 32


class Taps(NamedTuple):
    """A sparse matrix in compressed rows."""

    index: Tensor  # type: ignore[assignment]  # (entries,) int32: pixel, flattened over batch, height and width
    weight: Tensor  # (entries,)
    start: Tensor  # (rows,) int32: the first entry of each row


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to sum in: float64 for float64, else float32, from which half precision is rounded."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def channel_slices(pixels: int, channels: int, dtype: torch.dtype) -> list[slice]:
    """Return slices of channels whose pixels take at most ``SLICE_BYTES``, or hold ``MIN_SLICE`` channels."""
    size = max(MIN_SLICE, SLICE_BYTES // max(1, pixels * dtype.itemsize))
    return [slice(c, min(c + size, channels)) for c in range(0, channels, size)]


def weighted_sum(rows: Tensor, taps: Tensor, start: Tensor, weight: Tensor | None, mode: int = 0) -> Tensor:
    """Return the weighted sum of ``rows`` for each bag, see ``torch.nn.functional.embedding_bag``."""
    return torch.embedding_bag(rows, taps, start, False, mode, False, weight)[0]


def expand(count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expand counts per row.

    Returns:
        Of every entry its row and its position in the row, and of every row its first entry.
    """
    start = count.cumsum(0) - count
    row = torch.arange(len(count), device=count.device).repeat_interleave(count)
    position = torch.arange(len(row), device=count.device) - start[row]
    return row, position, start


def pool(x: Tensor, taps: Taps, output: Tensor) -> None:
    """Write ``taps @ x`` to ``output``.

    Args:
        x: (B, C, H, W).
        taps: N * h * w rows over B * H * W pixels.
        output: (N, C, h, w), overwritten.
    """
    batch, channels, height, width = x.shape
    dtype = compute_dtype(x)
    rois, _, out_h, out_w = output.shape
    for part in channel_slices(batch * height * width, channels, dtype):
        pixels = x[:, part].permute(0, 2, 3, 1).to(dtype).contiguous().flatten(0, 2)
        bins = weighted_sum(pixels, taps.index, taps.start, taps.weight)
        output[:, part] = bins.view(rois, out_h, out_w, -1).permute(0, 3, 1, 2)


def transpose(taps: Taps, rows: int, columns: int) -> Taps:
    """Transpose the matrix; ``columns`` is the number of pixels."""
    order = taps.index.sort().indices
    count = taps.index.bincount(minlength=columns)
    length = taps.start.diff(append=taps.start.new_tensor([len(taps.index)]))
    row = torch.arange(rows, dtype=torch.int32, device=order.device).repeat_interleave(length)
    return Taps(row[order], taps.weight[order], (count.cumsum(0) - count).int())


def spread(grad: Tensor, taps: Taps, grad_x: Tensor) -> None:
    """Add the gradient of ``pool`` to ``grad_x``.

    Args:
        grad: (N, C, h, w).
        taps: The argument of ``pool``.
        grad_x: (B, C, H, W), changed in place.
    """
    batch, channels, height, width = grad_x.shape
    dtype = compute_dtype(grad)
    back = transpose(taps, len(taps.start), batch * height * width)
    for part in channel_slices(batch * height * width, channels, dtype):
        bins = grad[:, part].permute(0, 2, 3, 1).to(dtype).contiguous().flatten(0, 2)
        pixels = weighted_sum(bins, back.index, back.start, back.weight)
        grad_x[:, part] += pixels.view(batch, height, width, -1).permute(0, 3, 1, 2).to(grad_x.dtype)
