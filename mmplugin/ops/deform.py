"""Deformable convolution, image by image: gather the columns, then multiply the matrices.

``grid_sample`` is not used: its coordinates are -1 to 1, and converting whole pixels to them and back has rounding
errors. Offsets start at zero, where bilinear sampling has a kink, so the rounding would decide from which side the
gradient is taken. mmcv takes the right side, and so does this implementation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .weighted_sums import Taps, compute_dtype, transpose, weighted_sum


class Geometry(NamedTuple):
    """Settings of the convolution, in the order in which the operators take them; pairs are (y, x)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    deform_groups: int


class Gradients(NamedTuple):
    """Gradients of all inputs but the bias."""

    x: Tensor
    offset: Tensor
    mask: Tensor | None
    weight: Tensor


def output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int]:
    """Return the height and width of the output."""
    stride, padding, dilation = geometry[:3]
    height, width = (
        (x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return height, width


class _Samples(NamedTuple):
    """Four neighbors of every sampled point of one image; rows are (deform group, kernel tap, output pixel)."""

    index: Tensor  # type: ignore[assignment]  # (rows, 4)
    weight: Tensor  # (rows, 4), without the mask
    by_y: Tensor  # (rows, 4), derivative of weight
    by_x: Tensor  # (rows, 4)


def _samples(offset: Tensor, size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> _Samples:
    """Return where ``offset`` (deform_groups * taps * 2, h, w) samples an image of ``size``."""
    height, width = size
    out_h, out_w = offset.shape[-2:]
    offset = offset.view(geometry.deform_groups, kernel[0] * kernel[1], 2, out_h, out_w)

    def grid(axis: int, length: int) -> tuple[Tensor, Tensor]:
        taps = torch.arange(kernel[axis], device=offset.device) * geometry.dilation[axis]
        places = torch.arange(length, device=offset.device) * geometry.stride[axis] - geometry.padding[axis]
        return taps, places

    (tap_y, place_y), (tap_x, place_x) = grid(0, out_h), grid(1, out_w)
    y = (tap_y.repeat_interleave(kernel[1])[:, None] + place_y)[:, :, None] + offset[:, :, 0]
    x = (tap_x.repeat(kernel[0])[:, None] + place_x)[:, None, :] + offset[:, :, 1]
    inside = (y > -1) & (x > -1) & (y < height) & (x < width)
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    y_low, x_low = y.floor(), x.floor()
    y_part, x_part = y - y_low, x - x_low
    base = torch.arange(geometry.deform_groups, device=offset.device)[:, None, None, None] * (height * width)
    index, weight, by_y, by_x = [], [], [], []
    for upper_y in (0, 1):
        for upper_x in (0, 1):
            row, column = y_low.long() + upper_y, x_low.long() + upper_x
            valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            wy, wx = (y_part if upper_y else 1 - y_part), (x_part if upper_x else 1 - x_part)
            index.append(base + row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
            weight.append(wy * wx * valid)
            by_y.append((wx if upper_y else -wx) * valid)
            by_x.append((wy if upper_x else -wy) * valid)
    return _Samples(*(torch.stack(part, -1).flatten(0, -2) for part in (index, weight, by_y, by_x)))


def _pixels(x: Tensor, deform_groups: int) -> Tensor:
    """Return x (C, H, W) as (deform_groups * H * W, channels of a deform group)."""
    return x.view(deform_groups, -1, x.shape[1] * x.shape[2]).transpose(1, 2).contiguous().flatten(0, 1)


def _columns(pixels: Tensor, samples: _Samples, weight: Tensor, deform_groups: int, groups: int, taps: int) -> Tensor:
    """Return the matrix to multiply with the kernels, (groups, channels of a group * taps, output pixels)."""
    start = torch.arange(0, samples.index.numel(), 4, device=pixels.device)
    rows = weighted_sum(pixels, samples.index.flatten(), start, weight.flatten())
    rows = rows.view(deform_groups, taps, -1, rows.shape[1]).permute(0, 3, 1, 2)  # group, channel, tap, pixel
    return rows.reshape(groups, -1, rows.shape[3])


def forward(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Return the output (B, O, h, w), in the dtype of x; with a mask, the modulated form."""
    out_h, out_w = output_size(x, weight, geometry)
    dtype = compute_dtype(x)
    out_channels, _, *kernel = weight.shape
    groups, deform_groups = geometry.groups, geometry.deform_groups
    kernels = weight.to(dtype).reshape(groups, out_channels // groups, -1)
    output = torch.empty(len(x), out_channels, out_h, out_w, dtype=x.dtype, device=x.device)
    for i in range(len(x)):
        samples = _samples(offset[i].to(dtype), x.shape[2:], kernel, geometry)
        scale = samples.weight if mask is None else samples.weight * mask[i].to(dtype).flatten()[:, None]
        pixels = _pixels(x[i].to(dtype), deform_groups)
        columns = _columns(pixels, samples, scale, deform_groups, groups, kernel[0] * kernel[1])
        output[i] = torch.bmm(kernels, columns).view(out_channels, out_h, out_w)
    return output if bias is None or bias.numel() == 0 else output + bias.to(output)[:, None, None]


def backward(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, geometry: Geometry
) -> Gradients:
    """Return all gradients but that of the bias, which is the sum of ``grad``."""
    dtype = compute_dtype(x)
    out_channels, _, *kernel = weight.shape
    groups, deform_groups, taps = geometry.groups, geometry.deform_groups, kernel[0] * kernel[1]
    height, width = x.shape[2:]
    kernels = weight.to(dtype).reshape(groups, out_channels // groups, -1)
    grad_x, grad_offset = torch.zeros_like(x), torch.zeros_like(offset)
    grad_mask = None if mask is None else torch.zeros_like(mask)
    grad_kernels = torch.zeros_like(kernels)
    for i in range(len(x)):
        samples = _samples(offset[i].to(dtype), (height, width), kernel, geometry)
        factor = torch.ones_like(samples.weight[:, 0]) if mask is None else mask[i].to(dtype).flatten()
        scale = samples.weight * factor[:, None]
        pixels = _pixels(x[i].to(dtype), deform_groups)
        image_grad = grad[i].to(dtype).reshape(groups, out_channels // groups, -1)
        columns = _columns(pixels, samples, scale, deform_groups, groups, taps)
        grad_kernels += image_grad @ columns.transpose(1, 2)

        rows = (kernels.transpose(1, 2) @ image_grad).view(deform_groups, -1, taps, image_grad.shape[2])
        rows = rows.permute(0, 2, 3, 1).reshape(len(scale), -1)  # as the rows that `_columns` gathers
        start = torch.arange(0, scale.numel(), 4, dtype=torch.int32, device=x.device)
        back = transpose(Taps(samples.index.flatten().int(), scale.flatten(), start), len(scale), len(pixels))
        pixel_grad = weighted_sum(rows, back.index, back.start, back.weight)
        grad_x[i] = pixel_grad.view(deform_groups, height * width, -1).transpose(1, 2).reshape(x.shape[1:])

        dots = torch.stack([(pixels[samples.index[:, k]] * rows).sum(1) for k in range(4)], 1)
        by_y, by_x = ((part * dots).sum(1) * factor for part in (samples.by_y, samples.by_x))
        shape = (deform_groups, taps, *offset.shape[2:])
        grad_offset[i] = torch.stack((by_y.view(shape), by_x.view(shape)), 2).view(offset.shape[1:])
        if mask is not None and grad_mask is not None:
            grad_mask[i] = (samples.weight * dots).sum(1).view(mask.shape[1:])
    return Gradients(grad_x, grad_offset, grad_mask, grad_kernels.view(weight.shape).to(weight.dtype))
