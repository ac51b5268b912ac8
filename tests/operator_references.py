"""Slow references of the operators, written from their definitions in float64, one number at a time.

The tests and ``docs/operators.md`` compare with these. RoIAlign, RoIPool, the focal losses and deformable convolution
work on tensor elements, so autograd gives their gradients.
"""

import math

import torch
from torch import Tensor


def iou(a: list[float], b: list[float], offset: int) -> float:
    """IoU of two boxes, NaN if their union has no area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    union = sum((x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in (a, b)) - width * height
    return width * height / union if union else math.nan


def nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    """Indices of the kept boxes, best first."""
    boxes, scores = boxes.double().tolist(), scores.double().tolist()
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):  # sorted() is stable: ties by index
        if not any(iou(boxes[k], boxes[i], offset) > threshold for k in kept):
            kept.append(i)
    return kept


def nms_match(dets: Tensor, threshold: float) -> list[list[int]]:
    """Indices of each kept box and the boxes that it suppresses, best first."""
    rows = dets.double().tolist()
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: -rows[i][4]):
        owner = next((g for g in groups if iou(rows[g[0]][:4], rows[i][:4], 0) >= threshold), None)
        if owner is None:
            groups.append([i])
        else:
            owner.append(i)
    return groups


def soft_nms(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, min_score: float, method: str, offset: int = 0
) -> tuple[list[float], list[int]]:
    """Scores and indices in the order of selection. All scores must differ."""
    boxes, left = boxes.double().tolist(), dict(enumerate(scores.double().tolist()))
    picked_scores, picked = [], []
    while left:
        best = max(left, key=left.__getitem__)
        picked.append(best)
        picked_scores.append(left.pop(best))
        for i in list(left):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= 0 if method == 'naive' else 1 - overlap
            if left[i] < min_score:
                del left[i]
    return picked_scores, picked


def _bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """Value of plane (C, H, W) at a point clamped to the plane; zero more than one pixel outside."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(len(plane))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = plane.new_zeros(len(plane))
    for row in {math.floor(y), math.ceil(y)}:
        for column in {math.floor(x), math.ceil(x)}:
            total = total + plane[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def roi_align(
    x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, mode: str, aligned: bool
) -> Tensor:
    """Pooled features (N, C, *size); differentiable by x in float64."""
    output = []
    for image, *box in rois.double().tolist():
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in box)
        high, wide = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        grid_y, grid_x = (ratio, ratio) if ratio > 0 else (math.ceil(high / size[0]), math.ceil(wide / size[1]))
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    _bilinear(
                        x[int(image)],
                        y1 + (i + (a + 0.5) / grid_y) * high / size[0],
                        x1 + (j + (b + 0.5) / grid_x) * wide / size[1],
                    )
                    for a in range(grid_y)
                    for b in range(grid_x)
                ]
                if not samples:
                    output.append(x.new_full((x.shape[1],), 0.0 if mode == 'avg' else -10000.0))
                else:
                    stack = torch.stack(samples)
                    output.append(stack.mean(0) if mode == 'avg' else stack.max(0).values)
    return torch.stack(output).view(len(rois), *size, x.shape[1]).permute(0, 3, 1, 2)


def roi_pool(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Pooled features (N, C, *size); differentiable by x in float64."""
    height, width = x.shape[2:]
    output = []
    for image, *box in rois.double().tolist():
        x1, y1, x2, y2 = box[0] * scale, box[1] * scale, (box[2] + 1) * scale, (box[3] + 1) * scale
        for i in range(size[0]):
            for j in range(size[1]):
                top, bottom = (y1 + (y2 - y1) / size[0] * (i + k) for k in (0, 1))
                left, right = (x1 + (x2 - x1) / size[1] * (j + k) for k in (0, 1))
                rows = [r for r in range(math.floor(top), math.ceil(bottom)) if 0 <= r < height]
                columns = [c for c in range(math.floor(left), math.ceil(right)) if 0 <= c < width]
                if rows and columns and x2 > x1 and y2 > y1:
                    pixels = torch.stack([x[int(image), :, r, c] for r in rows for c in columns])
                    output.append(pixels.max(0).values)
                else:
                    output.append(x.new_zeros(x.shape[1]))
    return torch.stack(output).view(len(rois), *size, x.shape[1]).permute(0, 3, 1, 2)


def sigmoid_focal_loss(x: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    """Sum over all elements; differentiable by x in float64."""
    total = x.new_zeros(())
    for row, label in zip(x, target.tolist(), strict=True):
        for k, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            term = -alpha * (1 - p) ** gamma * p.log() if k == label else -(1 - alpha) * p**gamma * (1 - p).log()
            total = total + term * (weight[label] if weight is not None and 0 <= label < len(row) else 1)
    return total


def softmax_focal_loss(x: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    """Sum over all rows; differentiable by x in float64."""
    total = x.new_zeros(())
    for row, label in zip(x, target.tolist(), strict=True):
        if 0 <= label < len(row):
            p = row[label].exp() / row.exp().sum()
            total = total - alpha * (1 - p) ** gamma * p.log() * (1 if weight is None else weight[label])
    return total


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Output (B, O, h, w), differentiable by every tensor in float64; outside the image all pixels are zero."""
    channels, height, width = x.shape[1:]
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    out_h, out_w = offset.shape[2:]
    output = []
    for b in range(len(x)):
        for o in range(out_channels):
            first = o // (out_channels // groups) * group_channels
            for i in range(out_h):
                for j in range(out_w):
                    total = x.new_zeros(())
                    for c in range(first, first + group_channels):
                        for tap in range(kernel_h * kernel_w):
                            at = c // (channels // deform_groups) * kernel_h * kernel_w + tap
                            u, v = divmod(tap, kernel_w)
                            y = i * stride[0] - padding[0] + u * dilation[0] + offset[b, 2 * at, i, j]
                            z = j * stride[1] - padding[1] + v * dilation[1] + offset[b, 2 * at + 1, i, j]
                            row, column = math.floor(y.detach()), math.floor(z.detach())
                            value = x.new_zeros(())
                            for r in (row, row + 1):
                                for s in (column, column + 1):
                                    # One pixel or more outside the value is 0, and exactly there the slope too.
                                    if -1 < y < height and -1 < z < width and 0 <= r < height and 0 <= s < width:
                                        near_y = y - row if r > row else 1 - (y - row)
                                        near_x = z - column if s > column else 1 - (z - column)
                                        value = value + x[b, c, r, s] * near_y * near_x
                            value = value if mask is None else value * mask[b, at, i, j]
                            total = total + weight[o, c - first, u, v] * value
                    output.append(total)
    return torch.stack(output).view(len(x), out_channels, out_h, out_w)
