"""Exact GELU of a map (B, C, H, W), computed on the NHWC view.

That view is contiguous for channels-last maps, which takes oneDNN's kernel: about twice as fast on a CPU. An exported
file gets the plain operator: other runtimes would copy the map twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import torch_internals
from .convolution import FIRST, LAST


def gelu(x: Tensor) -> Tensor:
    """Return GELU of ``x``."""
    return F.gelu(x) if torch.compiler.is_exporting() else F.gelu(x.permute(LAST)).permute(FIRST)


def gelu_(x: Tensor) -> Tensor:
    """Apply GELU in place."""
    torch_internals.gelu_(x.permute(LAST))
    return x


def gelu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """Overwrite ``grad``, the gradient of ``gelu(x)``, with the gradient of ``x``."""
    torch_internals.gelu_backward_(grad.permute(LAST), x.permute(LAST))
    return grad
