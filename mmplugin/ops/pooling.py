"""RoIPool: the maximum of each bin. Bins are rounded outward to whole pixels, so they overlap."""

import torch
from torch import Tensor

from .weighted_sums import compute_dtype, expand


def _borders(low: Tensor, high: Tensor, bins: int, scale: float, size: int) -> tuple[Tensor, Tensor]:
    """Return the first and past-the-last pixel of every bin along one axis, (N, bins); ``high`` is inclusive."""
    start, end = low * scale, (high + 1) * scale
    extent = (end - start)[:, None]
    index = torch.arange(bins + 1, device=low.device)
    edges = index * (extent / bins) + start[:, None]
    first = edges[:, :-1].floor().clamp(0, size)
    past = edges[:, 1:].ceil().clamp(0, size)
    past = torch.where(extent > 0, past, first)
    return first.nan_to_num(0.0).long(), past.nan_to_num(0.0).long()


def forward(x: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, scale: float) -> None:
    """Write ``output`` (N, C, h, w), and ``argmax``: the flat index into the H * W pixels, -1 for an empty bin."""
    if output.numel() == 0:
        return
    _, channels, height, width = x.shape
    count, _, out_h, out_w = output.shape
    rois = rois.to(compute_dtype(rois))
    top, bottom = _borders(rois[:, 2], rois[:, 4], out_h, scale, height)
    left, right = _borders(rois[:, 1], rois[:, 3], out_w, scale, width)
    high = (bottom - top).clamp(min=0)[:, :, None].expand(-1, -1, out_w).flatten()
    wide = (right - left).clamp(min=0)[:, None].expand(-1, out_h, -1).flatten()
    bin_, position, start = expand(high * wide)
    corner = (rois[:, 0].long() * height)[:, None, None] + top[:, :, None]
    corner = (corner * width + left[:, None]).flatten()
    index = corner[bin_] + position // wide[bin_] * width + position % wide[bin_]
    pixels = x.permute(0, 2, 3, 1).to(compute_dtype(x)).contiguous().flatten(0, 2)
    best, _, _, at = torch.embedding_bag(pixels, index, start, False, 2, False, None)
    empty = (high * wide == 0)[:, None]
    best, at = best.masked_fill(empty, 0), torch.where(empty, -1, at % (height * width))
    for target, values in ((output, best), (argmax, at)):
        target.copy_(values.view(count, out_h, out_w, channels).permute(0, 3, 1, 2))


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, grad_x: Tensor) -> None:
    """Add the gradient to ``grad_x`` (B, C, H, W)."""
    _, channels, height, width = grad_x.shape
    dtype = compute_dtype(grad)
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = argmax.clamp(min=0) + (plane * height * width)[:, :, None, None]
    total = torch.zeros(grad_x.numel(), dtype=dtype, device=grad.device)
    total.index_add_(0, index.flatten(), grad.to(dtype).masked_fill(argmax < 0, 0).flatten())
    grad_x += total.view(grad_x.shape).to(grad_x.dtype)
