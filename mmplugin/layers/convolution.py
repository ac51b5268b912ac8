"""A convolution that runs in the form that is fastest on a CPU. The numbers are those of ``nn.Conv2d`` in every mode.

| Mode                                                  | 1x1, up to MAX_MATMUL_PIXELS | All others           |
|-------------------------------------------------------|------------------------------|----------------------|
| CPU, inference in float32                             | matrix product               | prepacked weight     |
| CPU, training or autocast                             | matrix product               | ``F.conv2d``         |
| CPU, torch.compile, map known to be small             | matrix product               | left to the compiler |
| CPU, torch.compile, dynamic sizes                     | left to the compiler         | left to the compiler |
| GPU, torch.export, torch.jit.trace                    | ``F.conv2d``                 | ``F.conv2d``         |
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import torch_internals

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # permutations NCHW -> NHWC and back
# Up to this many pixels (of all images) a matrix product beats oneDNN's 1x1 convolution, whose call overhead alone
# equals the work on a 7x7 window; above, it takes up to a quarter longer.
MAX_MATMUL_PIXELS = 4096


class FastConv2d(nn.Conv2d):
    """``nn.Conv2d`` with the same arguments, parameters and results, in the forms of the table above.

    The prepacked weight is a copy in oneDNN's layout, which oneDNN would otherwise make at every call. It is made
    again when the weight changes, and never saved, copied or moved.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pointwise = self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
        # cache key of the weight, its copy, and the weight itself, kept alive as the key demands
        self._prepacked: tuple[tuple, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_prepacked': None}

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Convolve, then apply ReLU if wanted."""
        if self._can_prepack(x):
            return torch_internals.prepacked_convolution(x, self._prepacked_weight(x.shape), self.bias, self, relu)
        x = self.conv_with(x, self.weight, self.bias)
        return F.relu(x) if relu else x

    def conv_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with another weight and bias of the same shapes. The result may be a view of a new tensor."""
        if not self._is_matmul(x):
            return self._conv_forward(x, weight, bias)
        batch, _, height, width = x.shape
        rows = x.permute(LAST).flatten(0, 2)  # (B * H * W, in_channels), a view of a channels-last map
        return F.linear(rows, weight.flatten(1), bias).unflatten(0, (batch, height, width)).permute(FIRST)

    def _is_matmul(self, x: Tensor) -> bool:
        if not self.pointwise or not x.is_cpu or torch.jit.is_tracing() or torch.compiler.is_exporting():
            return False
        small = x.numel() <= MAX_MATMUL_PIXELS * self.in_channels
        return torch_internals.known_true(small) if torch.compiler.is_compiling() else small

    def _can_prepack(self, x: Tensor) -> bool:
        return (
            x.is_cpu
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_autocast_enabled('cpu')
            and not self._is_matmul(x)
            and not self.weight.is_inference()  # has no version to tell whether it changed
            and self.padding_mode == 'zeros'
            and not isinstance(self.padding, str)
            and torch_internals.can_prepack()
        )

    def _prepacked_weight(self, input_shape: torch.Size) -> Tensor:
        key = torch_internals.cache_key(self.weight)
        entry = self._prepacked  # another thread may replace it
        if entry is None or entry[0] != key:
            packed = torch_internals.prepack(self.weight, self, input_shape)
            entry = self._prepacked = key, packed, self.weight.detach()
        return entry[1]
