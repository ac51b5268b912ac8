"""Bias tables: resizing for networks pretrained with a smaller window, and index tables."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from mmplugin.backbones.efficientvit_msra import WINDOW, shrink_matrix


def grow(table: Tensor) -> Tensor:
    """Resize a table (heads, n * n) of a small window to the full window, as the authors do for detection."""
    side = isqrt(table.shape[1])
    image = table.float().view(1, -1, side, side)
    return F.interpolate(image, size=(WINDOW, WINDOW), mode='bicubic')[0].flatten(1).to(table.dtype)


def shrink(table: Tensor, side: int) -> Tensor:
    """Apply the least-squares inverse of ``grow``."""
    matrix = shrink_matrix(side, torch.device('cpu'), torch.float64)
    image = table.double().view(-1, WINDOW, WINDOW)
    return (matrix @ image @ matrix.T).flatten(1).to(table.dtype)


def can_grow(table: Tensor, shape: torch.Size) -> bool:
    """Return whether ``table`` is square, smaller than the window, and has as many heads as ``shape``."""
    heads, size = shape
    return (
        table.dim() == 2
        and table.shape[0] == heads
        and size == WINDOW**2
        and isqrt(table.shape[1]) ** 2 == table.shape[1]
        and 1 < table.shape[1] < size
    )


def index_table(entries: int, stride: int) -> Tensor:
    """Return the index table (queries, keys), int64, into a bias table with ``entries`` columns."""
    keys = torch.arange(isqrt(entries))
    offsets = (keys[::stride, None] - keys).abs()  # (queries, keys) along one axis
    table = offsets[:, None, :, None] * len(keys) + offsets[None, :, None, :]
    return table.reshape(len(offsets) ** 2, len(keys) ** 2)
