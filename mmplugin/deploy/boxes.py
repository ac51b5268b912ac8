"""The steps of a detector after its convolutions, with numbers of boxes that depend on the image."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmplugin.errors import UserError
from mmplugin.ops import library


def require_nms(settings: Any) -> tuple[float, bool]:
    """Return the threshold of a plain NMS, and whether it ignores classes."""
    if settings.get('type', 'nms') != 'nms':
        raise UserError(f'test_cfg: NMS of type {settings["type"]!r} cannot be exported; allowed is nms')
    return float(settings.get('iou_threshold', settings.get('iou_thr', 0.5))), bool(settings.get('class_agnostic'))


def anchors(base: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return the anchors of a map, (height * width * anchors of a pixel, 4).

    Args:
        base: Anchors of the first pixel (A, 4).
        size: Rows and columns of the map.
        stride: Distance of columns and of rows, in pixels of the image.
    """
    height, width = size
    x = torch.arange(width, dtype=base.dtype, device=base.device) * stride[0]
    y = torch.arange(height, dtype=base.dtype, device=base.device) * stride[1]
    zero = torch.zeros((), dtype=base.dtype, device=base.device)
    x, y = x[None, :] + zero * y[:, None], y[:, None] + zero * x[None, :]  # (height, width)
    shifts = torch.stack([x, y, x, y], -1)
    return (base + shifts[:, :, None]).flatten(0, 2)


def decode(boxes: Tensor, deltas: Tensor, coder: Any, size: Tensor) -> Tensor:
    """Apply deltas (n, 4) to boxes (n, 4) as mmdet's ``DeltaXYWHBBoxCoder``, and clip to ``size``: height, width."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    near, far = boxes[:, :2], boxes[:, 2:]
    sides = far - near
    limit = abs(math.log(16 / 1000))  # the coder's wh_ratio_clip, which no config can change
    shift, growth = sides * deltas[:, :2], deltas[:, 2:]
    if coder.add_ctr_clamp:
        shift, growth = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp), growth.clamp(max=limit)
    else:
        growth = growth.clamp(-limit, limit)
    center, sides = (near + far) * 0.5 + shift, sides * growth.exp()
    found = torch.cat([center - sides * 0.5, center + sides * 0.5], 1)
    if not coder.clip_border:
        return found
    return torch.minimum(found.clamp(min=0), size.flip(0).repeat(2).to(found.dtype))


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` highest scores of (n,), best first, and their positions; all if there are fewer."""
    total = scores.shape[0]
    return scores.topk(torch.sym_min(count, total) if isinstance(total, torch.SymInt) else min(count, total))


def large_enough(boxes: Tensor, least: float) -> Tensor:
    """Return which boxes have sides above ``least``; all if it is negative."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return ((sides > least) if least >= 0 else (sides == sides)).all(1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, nms: tuple[float, bool], count: int) -> Tensor:
    """Return the positions of at most ``count`` boxes that NMS keeps in each group, best first."""
    threshold, ignore_groups = nms
    if not ignore_groups:  # shifted, so that boxes of different groups do not overlap
        largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # there may be no box
        boxes = boxes + (groups.to(boxes.dtype) * (largest + 1))[:, None]
    return library.nms(boxes, scores, threshold, 0)[:count]


def positions(mask: Tensor) -> Tensor:
    """Return the indices of true entries."""
    return mask.nonzero()[:, 0]


def paste(grids: Tensor, boxes: Tensor, size: Tensor, threshold: float) -> Tensor:
    """Return masks (n, height, width), bool, as mmdet's ``FCNMaskHead`` pastes them.

    Bilinear interpolation is separable, so a mask is a grid between two small matrices.

    Args:
        grids: Probabilities (n, side, side) over each box.
        boxes: x1, y1, x2, y2 in pixels of the image, (n, 4).
        size: Height and width of the image.
        threshold: Probability from which a pixel belongs to an object.
    """
    height, width = (side.item() for side in size.unbind())
    for length in (height, width):
        torch._check(length >= 1)
    side = grids.shape[2]
    rows = _shares(boxes[:, 1], boxes[:, 3], height, side)
    columns = _shares(boxes[:, 0], boxes[:, 2], width, side)
    return rows @ grids @ columns.transpose(1, 2) >= threshold


def _shares(near: Tensor, far: Tensor, size: Any, side: int) -> Tensor:
    """Return the share that each cell of a grid between two positions has in each pixel: (n, size, side)."""
    near, far = near[:, None], far[:, None]
    pixels = torch.arange(size, dtype=near.dtype, device=near.device)
    relative = (pixels + 0.5 - near) / (far - near) * 2 - 1
    relative = torch.where(relative.isinf(), torch.zeros(()), relative)  # a box without extent
    cells = ((relative + 1) * side - 1) / 2
    shares = (1 - (cells[:, :, None] - torch.arange(side, dtype=near.dtype, device=near.device)).abs()).clamp(min=0)
    # As far as one pixel outside of the box, where mmdet stops.
    inside = (pixels >= near.floor() - 1) & (pixels < far.ceil() + 1) & ~relative.isnan()
    return torch.where(inside[:, :, None], shares, torch.zeros(()))
