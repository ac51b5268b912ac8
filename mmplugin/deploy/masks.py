"""Masks of objects from the grids that a file returns. Needs numpy only."""

from typing import Any

import numpy as np


def paste_masks(grids: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float) -> np.ndarray:
    """Return masks (n, height, width), bool, as mmdet's ``FCNMaskHead`` pastes them.

    Args:
        grids: Probabilities (n, side, side) over each box.
        boxes: x1, y1, x2, y2 in pixels of the image, (n, 4).
        height: Height of the image.
        width: Width of the image.
        threshold: Probability from which a pixel belongs to an object.
    """
    masks = np.zeros((len(grids), height, width), bool)
    corners: Any = boxes.astype(np.float32)
    for mask, grid, (x1, y1, x2, y2) in zip(masks, grids, corners, strict=True):
        # As far as one pixel outside of the box, where interpolation with the zeros around the grid ends.
        rows, columns = _span(y1, y2, height), _span(x1, x2, width)
        if rows.size and columns.size:
            inside = _sample(grid, _positions(rows, y1, y2, len(grid)), _positions(columns, x1, x2, len(grid)))
            mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = inside >= threshold
    return masks


def _span(near: Any, far: Any, size: int) -> np.ndarray:
    return np.arange(max(0, int(np.floor(near)) - 1), min(size, int(np.ceil(far)) + 1))


def _positions(pixels: np.ndarray, near: Any, far: Any, side: int) -> np.ndarray:
    """Return where the centers of pixels are in a grid of ``side`` cells, in cells."""
    half, one = np.float32(0.5), np.float32(1)
    with np.errstate(divide='ignore', invalid='ignore'):
        relative = (pixels.astype(np.float32) + half - near) / (far - near) * np.float32(2) - one
    relative = np.where(np.isinf(relative), np.float32(0), relative)  # a box without extent
    return ((relative + one) * np.float32(side) - one) / np.float32(2)


def _sample(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate a grid with zeros around it at rows ``y`` and columns ``x``."""
    padded = np.pad(grid, 1)
    top, left = np.floor(y), np.floor(x)
    below, right = (y - top)[:, None], (x - left)[None]
    above, before = (top + 1 - y)[:, None], (left + 1 - x)[None]
    rows = [np.clip(top + step, 0, len(grid) + 1).astype(int)[:, None] for step in (1, 2)]
    columns = [np.clip(left + step, 0, len(grid) + 1).astype(int)[None] for step in (1, 2)]
    result = padded[rows[0], columns[0]] * (above * before)
    result += padded[rows[0], columns[1]] * (above * right)
    result += padded[rows[1], columns[0]] * (below * before)
    result += padded[rows[1], columns[1]] * (below * right)
    return result
