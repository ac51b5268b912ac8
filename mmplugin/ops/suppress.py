"""Non-maximum suppression in blocks, so that only a slice of the n x n overlaps is in memory at a time."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .extension import torchvision_operators

BLOCK = 512  # boxes that are decided together
PAIRS = 1 << 19  # overlaps that are computed together: temporaries of 2 MB fit in the cache


def _corners(boxes: Tensor) -> Tensor:
    """Return boxes as (4, n), contiguous by coordinate for vectorization."""
    return boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32)).t().contiguous()


def _areas(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[2] - boxes[0] + offset) * (boxes[3] - boxes[1] + offset)


def overlaps(a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Return the IoU of (4, n) and (4, m) boxes, (n, m), in mmcv's order of operations; NaN if both areas are zero."""
    width = torch.minimum(a[2][:, None], b[2]).sub_(torch.maximum(a[0][:, None], b[0]))
    height = torch.minimum(a[3][:, None], b[3]).sub_(torch.maximum(a[1][:, None], b[1]))
    if offset:
        width, height = width.add_(offset), height.add_(offset)
    inter = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union = (_areas(a, offset)[:, None] + _areas(b, offset)).sub_(inter)
    return inter.div_(union)


def _any_row(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8).amax(0).bool()  # ten times as fast as any(0)


def _greedy(close: Tensor) -> Tensor:
    """Return which boxes of a block survive; ``close[i, j]`` means that box i, if it survives, suppresses a later j.

    Box j is decided once all boxes before it are: each round decides at least one more, and a few rounds usually
    decide the whole block.
    """
    close = close.triu(1).to(torch.float32)
    keep = close.new_ones(len(close))
    while True:
        survivors = (keep @ close == 0).to(torch.float32)
        if torch.equal(survivors, keep):
            return keep.bool()
        keep = survivors


def _survivors(boxes: Tensor, threshold: float, offset: int, inclusive: bool) -> Tensor:
    """Return the positions of the surviving boxes, in order; boxes (4, n) are sorted, best first."""
    compare = torch.ge if inclusive else torch.gt
    position = torch.arange(boxes.shape[1], device=boxes.device)
    kept = []
    while len(position):
        block, boxes = boxes[:, :BLOCK], boxes[:, BLOCK:]
        alive = _greedy(compare(overlaps(block, block, offset), threshold))
        kept.append(position[:BLOCK][alive])
        position, block = position[BLOCK:], block[:, alive]
        if len(position):
            parts = boxes.split(PAIRS // block.shape[1], 1)
            free = torch.cat([~_any_row(compare(overlaps(block, part, offset), threshold)) for part in parts])
            position, boxes = position[free], boxes[:, free]
    return torch.cat(kept)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Return the indices of the boxes that no better box overlaps by more than the threshold, best first.

    Of boxes with equal scores, the first is better.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, dtype=torch.int64)
    if offset == 0 and (vision := torchvision_operators(boxes)):
        return vision.nms(boxes.float(), scores.float(), iou_threshold)
    order = scores.detach().sort(dim=0, descending=True, stable=True).indices
    return order[_survivors(_corners(boxes[order]), iou_threshold, offset, inclusive=False)]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return groups of indices: each surviving box with those it suppresses, by an IoU >= the threshold; best first."""
    if len(dets) == 0:
        return []
    order = dets[:, 4].detach().sort(dim=0, descending=True, stable=True).indices
    boxes = _corners(dets[order, :4])
    kept = _survivors(boxes, iou_threshold, 0, inclusive=True)
    winners = boxes[:, kept]
    owner = []
    for part in torch.arange(len(order), device=boxes.device).split(max(1, PAIRS // len(kept))):
        close = (overlaps(winners, boxes[:, part], 0) >= iou_threshold) & (kept[:, None] < part)
        # The first survivor that overlaps; no survivor overlaps one before it, so it owns itself.
        owner.append(torch.where(_any_row(close), close.view(torch.uint8).argmax(0), torch.searchsorted(kept, part)))
    groups: list[list[int]] = [[] for _ in range(len(kept))]
    for group, index in zip(torch.cat(owner).tolist(), order.tolist(), strict=True):
        groups[group].append(index)
    return groups


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of overlapping boxes instead of removing them.

    Every selection changes the scores for the next one, so there is a loop over boxes. Numpy, because the dispatch of
    a tensor operation costs more than its work at this size. Boxes are swapped as in mmcv, which decides ties.

    Args:
        boxes: (n, 4).
        scores: (n,).
        iou_threshold: Overlap from which naive and linear lower a score.
        sigma: Width of the gaussian.
        min_score: Boxes with a lower score are dropped.
        method: 0 naive, 1 linear, 2 gaussian.
        offset: 1 if the far coordinates are inclusive, else 0.

    Returns:
        dets (k, 5) with the lowered scores, and their indices (k,), in the order of selection.
    """
    dtype: Any = np.float64 if boxes.dtype == torch.float64 else np.float32
    box = boxes.detach().cpu().to(torch.promote_types(boxes.dtype, torch.float32)).numpy().astype(dtype, copy=True)
    score = scores.detach().cpu().to(torch.promote_types(scores.dtype, torch.float32)).numpy().astype(dtype, copy=True)
    index = np.arange(len(box))
    size = (box[:, 2] - box[:, 0] + dtype(offset)) * (box[:, 3] - box[:, 1] + dtype(offset))
    arrays = (box, score, size, index)
    threshold, low = dtype(iou_threshold), dtype(min_score)
    end, i = len(box), 0
    while i < end:
        best = i + int(score[i:end].argmax())
        for array in arrays:
            array[[i, best]] = array[[best, i]]
        rest = slice(i + 1, end)
        wide = np.minimum(box[i, 2:], box[rest, 2:]) - np.maximum(box[i, :2], box[rest, :2]) + dtype(offset)
        inter = wide.clip(min=0).prod(1)
        with np.errstate(invalid='ignore', divide='ignore'):
            iou = inter / (size[i] + size[rest] - inter)
        if method == 2:
            score[rest] *= np.exp(-(iou * iou) / dtype(sigma))
        else:
            score[rest] *= np.where(iou >= threshold, 0 if method == 0 else 1 - iou, 1).astype(dtype)
        # mmcv drops a box by moving the last one to its position: holes are filled from the end.
        dead = score[rest] < low
        if dead.any():
            living = end - int(dead.sum())
            holes = i + 1 + np.flatnonzero(dead[: living - i - 1])
            movers = (i + 1 + np.flatnonzero(~dead))[::-1][: len(holes)]
            for array in arrays:
                array[holes] = array[movers]
            end = living
        i += 1
    dets = torch.from_numpy(np.concatenate((box[:end], score[:end, None]), 1))
    return dets, torch.from_numpy(index[:end])
