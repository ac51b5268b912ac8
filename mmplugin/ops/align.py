"""RoIAlign without a loop over RoIs.

Bilinear sampling on a regular grid is separable: the weight of a pixel in a bin is a weight in y times a weight in x.
With adaptive sampling the samples of a bin are at most one pixel apart, so g samples read g + 1 adjacent pixels:
(g + 1)^2 products per bin and channel instead of 4 g^2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .extension import torchvision_operators
from .weighted_sums import Taps, compute_dtype, expand, pool, spread, weighted_sum

NO_SAMPLES = -10000.0  # mmcv's maximum of a bin without samples
MAX_MODE_SAMPLES = 1 << 16  # samples computed at a time in max mode: 64 MB with 256 channels


class RoIAlignSpec(NamedTuple):
    """Settings of RoIAlign, in the order in which the operators take them."""

    scale: float  # feature map size / image size
    ratio: int  # samples per bin and axis; 0 is adaptive
    average: bool  # else maximum
    aligned: bool  # shift by half a pixel


class _Axis(NamedTuple):
    """One axis of every RoI, in pixels of the feature map."""

    start: Tensor  # (N,)
    bin: Tensor  # (N,) size of a bin
    grid: Tensor  # (N,) int64, samples per bin


def _axis(low: Tensor, high: Tensor, bins: int, spec: RoIAlignSpec) -> _Axis:
    # In mmcv's order of operations, because ceil() turns a difference in the last bit into a whole sample.
    shift = 0.5 if spec.aligned else 0.0
    start = low * spec.scale - shift
    size = (high * spec.scale - shift) - start
    if not spec.aligned:
        size = size.clamp(min=1.0)
    if spec.ratio > 0:
        grid = torch.full_like(size, spec.ratio, dtype=torch.int64)
    else:
        grid = (size / bins).ceil().nan_to_num(0.0).clamp(min=0).long()
    return _Axis(start, size / bins, grid)


def _axes(rois: Tensor, bins: Sequence[int], spec: RoIAlignSpec) -> tuple[_Axis, _Axis]:
    """Return the y and the x axis of RoIs (N, 5)."""
    rois = rois.to(compute_dtype(rois))
    return _axis(rois[:, 2], rois[:, 4], bins[0], spec), _axis(rois[:, 1], rois[:, 3], bins[1], spec)


def _samples(axis: _Axis, bins: int, grid: int) -> Tensor:
    """Return coordinates (N, bins, grid); those beyond the grid of a RoI are not used."""
    index = torch.arange(bins, device=axis.start.device)[:, None]
    step = torch.arange(grid, device=axis.start.device) + 0.5
    size = axis.bin[:, None, None]
    return axis.start[:, None, None] + index * size + step.to(size) * size / axis.grid[:, None, None]


def _bilinear(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower pixel, its weight and the weight of the upper pixel; weights are 0 outside [-1, size]."""
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(min=0.0, max=size - 1.0).nan_to_num(0.0)
    low = at.floor()
    fraction = at - low
    return low.long(), (1 - fraction) * inside, fraction * inside


def _windows(axis: _Axis, bins: int, size: int, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels and weights of every bin along one axis.

    Returns:
        pixel (N, bins, taps), weight (N, bins, taps), number of used taps (N,).
    """
    grid = ratio if ratio > 0 else int(axis.grid.max())
    at = _samples(axis, bins, grid)
    low, weight_low, weight_high = _bilinear(at, size)
    if ratio > 0:  # samples may be many pixels apart: two taps for each
        pixel = torch.cat((low, (low + 1).clamp(max=size - 1)), -1)
        return pixel, torch.cat((weight_low, weight_high), -1), 2 * axis.grid
    used = torch.arange(grid, device=at.device) < axis.grid[:, None, None]
    first = low[..., :1]
    # Rounding may move the last sample one pixel further, where its weight is almost 0.
    local = (low - first).clamp(min=0, max=grid)
    weight = at.new_zeros((*at.shape[:2], grid + 1))
    weight.scatter_add_(2, local, weight_low * used)
    weight.scatter_add_(2, (local + 1).clamp(max=grid), weight_high * used)
    pixel = (first + torch.arange(grid + 1, device=at.device)).clamp(max=size - 1)
    return pixel, weight, torch.where(axis.grid > 0, axis.grid + 1, 0)


def roi_taps(rois: Tensor, x_shape: Sequence[int], bins: Sequence[int], spec: RoIAlignSpec) -> Taps:
    """Return the sparse matrix of average pooling: N * h * w rows over the pixels of x."""
    height, width = x_shape[-2:]
    y_axis, x_axis = _axes(rois, bins, spec)
    y_pixel, y_weight, y_taps = _windows(y_axis, bins[0], height, spec.ratio)
    x_pixel, x_weight, x_taps = _windows(x_axis, bins[1], width, spec.ratio)
    y_weight = y_weight / (y_axis.grid * x_axis.grid).clamp(min=1)[:, None, None]

    # A line is one row of pixels in one bin. First find the lines of all bins, then the pixels of all lines.
    per_roi = bins[0] * bins[1]
    lines = torch.where(x_taps > 0, y_taps, 0).repeat_interleave(per_roi)
    bin_, y_position, first_line = expand(lines)
    roi = bin_ // per_roi
    y_flat = (bin_ // bins[1]) * y_pixel.shape[2] + y_position  # bin_ // bins[1] counts (RoI, row of bins)
    line_base = (rois[:, 0].long()[roi] * height + y_pixel.flatten()[y_flat]) * width
    line_weight = y_weight.flatten()[y_flat]
    line_taps = x_taps[roi]
    line, x_position, first_tap = expand(line_taps)
    x_flat = ((roi * bins[1] + bin_ % bins[1]) * x_pixel.shape[2])[line] + x_position
    index = line_base[line] + x_pixel.flatten()[x_flat]
    weight = line_weight[line] * x_weight.flatten()[x_flat]
    first_tap = torch.cat((first_tap, first_tap.new_tensor([len(line)])))
    return Taps(index.int(), weight, first_tap[first_line].int())


def forward(x: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, spec: RoIAlignSpec) -> None:
    """Write ``output`` (N, C, h, w); for the maximum, also its coordinates."""
    if output.numel() == 0:
        return
    if not spec.average:
        _max_forward(x, rois, output, argmax_y, argmax_x, spec)
    elif vision := torchvision_operators(x):
        output.copy_(vision.roi_align(x, rois.type_as(x), spec.scale, *output.shape[2:], spec.ratio, spec.aligned))
    else:
        pool(x, roi_taps(rois, x.shape, output.shape[2:], spec), output)


def backward(
    grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_x: Tensor, spec: RoIAlignSpec
) -> None:
    """Add the gradient to ``grad_x`` (B, C, H, W)."""
    if grad.numel() == 0:
        return
    if not spec.average:
        _max_backward(grad, rois, argmax_y, argmax_x, grad_x)
    elif vision := torchvision_operators(grad):
        sizes = (*grad.shape[2:], *grad_x.shape)
        grad_x += vision._roi_align_backward(grad, rois.type_as(grad), spec.scale, *sizes, spec.ratio, spec.aligned)
    else:
        spread(grad, roi_taps(rois, grad_x.shape, grad.shape[2:], spec), grad_x)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the flat indices and the weights of the four neighbors, (..., 4)."""
    y_low, y0, y1 = _bilinear(y, height)
    x_low, x0, x1 = _bilinear(x, width)
    y_high, x_high = (y_low + 1).clamp(max=height - 1), (x_low + 1).clamp(max=width - 1)
    pixel = torch.stack([row * width + column for row in (y_low, y_high) for column in (x_low, x_high)], -1)
    return pixel, torch.stack([a * b for a in (y0, y1) for b in (x0, x1)], -1)


def _max_forward(
    x: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, spec: RoIAlignSpec
) -> None:
    _, channels, height, width = x.shape
    count, _, out_h, out_w = output.shape
    pixels = x.permute(0, 2, 3, 1).to(compute_dtype(x)).contiguous().flatten(0, 2)
    y_axis, x_axis = _axes(rois, (out_h, out_w), spec)
    y_at = _samples(y_axis, out_h, max(1, int(y_axis.grid.max())))
    x_at = _samples(x_axis, out_w, max(1, int(x_axis.grid.max())))
    samples = (y_axis.grid * x_axis.grid).repeat_interleave(out_h * out_w)
    best = pixels.new_full((len(samples), channels), NO_SAMPLES)
    best_y, best_x = torch.full_like(best, -1), torch.full_like(best, -1)

    ends = samples.cumsum(0)
    done = 0
    while done < len(samples):
        before = int(ends[done - 1]) if done else 0
        limit = torch.tensor(before + MAX_MODE_SAMPLES, device=ends.device)
        stop = max(done + 1, int(torch.searchsorted(ends, limit, right=True)))
        bin_, position, start = expand(samples[done:stop])
        bin_ = bin_ + done
        roi = bin_ // (out_h * out_w)
        y = y_at[roi, bin_ // out_w % out_h, position // x_axis.grid[roi]]
        x_ = x_at[roi, bin_ % out_w, position % x_axis.grid[roi]]
        pixel, weight = _corners(y, x_, height, width)
        pixel = pixel + (rois[:, 0].long()[roi] * height * width)[:, None]
        first = torch.arange(0, 4 * len(pixel), 4, device=pixel.device)
        values = weighted_sum(pixels, pixel.flatten(), first, weight.flatten().to(pixels.dtype))
        if len(values):
            taken, _, _, at = torch.embedding_bag(
                values, torch.arange(len(values), device=pixel.device), start, False, 2, False, None
            )
            found = (samples[done:stop, None] > 0) & (taken > NO_SAMPLES)
            best[done:stop] = torch.where(found, taken, NO_SAMPLES)
            best_y[done:stop] = torch.where(found, y[at.clamp(min=0)].to(best), -1.0)
            best_x[done:stop] = torch.where(found, x_[at.clamp(min=0)].to(best), -1.0)
        done = stop
    for target, values in ((output, best), (argmax_y, best_y), (argmax_x, best_x)):
        target.copy_(values.view(count, out_h, out_w, channels).permute(0, 3, 1, 2))


def _max_backward(grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_x: Tensor) -> None:
    _, channels, height, width = grad_x.shape
    dtype = compute_dtype(grad)
    pixel, weight = _corners(argmax_y.to(dtype), argmax_x.to(dtype), height, width)  # (N, C, h, w, 4)
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    pixel = pixel + (plane * height * width)[:, :, None, None, None]
    # -1 means "no sample"; a sample at exactly -1 loses its gradient, as in mmcv.
    weight = weight * (argmax_y != -1)[..., None]
    total = torch.zeros(grad_x.numel(), dtype=dtype, device=grad.device)
    total.index_add_(0, pixel.flatten(), (grad.to(dtype)[..., None] * weight).flatten())
    grad_x += total.view(grad_x.shape).to(grad_x.dtype)
