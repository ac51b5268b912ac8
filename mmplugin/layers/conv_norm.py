"""ConvNorm: the one place where a convolution meets its norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import Convolution
from .recompute_conv import LeanConv, folded, gelu, gelu_


class ConvNorm(nn.Module):
    """A convolution followed by batch norm, with 'same' padding for odd kernels.

    A norm that does not train is a scale and a shift, and belongs inside the convolution: always where gradients are
    wanted, elsewhere where that is less work. For backward a convolution keeps its input and nothing else
    (:class:`LeanConv`). The state dict never changes; :meth:`fuse` folds for good.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the kernel.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        bias: Whether the convolution has a bias of its own (published weights of some families do).
        gelu: Apply GELU to the input first. It is part of this module so that its result need not be kept for backward.
        relu: Apply ReLU to the result.
        zero_init: Start with a norm scale of zero, so that a residual branch starts as the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        gelu: bool = False,
        relu: bool = False,
        zero_init: bool = False,
    ):
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, kernel_size, stride, groups, bias)
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(out_channels)
        self.gelu, self.relu = gelu, relu
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, layer_scale: Tensor | None = None) -> Tensor:
        """Convolves and normalises; ``layer_scale`` (C,) multiplies the result and is folded in as well."""
        if self.norm is None:
            return self.conv(self._activated(x), self.relu)
        if not self.norm.training and (torch.is_grad_enabled() or self._folding_pays(x)):
            x = self._convolved(x, layer_scale, self.norm)
        else:
            x = self.norm(self._convolved(x, None, None))
            x = x if layer_scale is None else x * layer_scale.view(-1, 1, 1)
        return F.relu_(x) if self.relu else x

    def _activated(self, x: Tensor) -> Tensor:
        if not self.gelu:
            return x
        # In place where nothing is kept: `x` is the result of the convolution before, which nobody else sees.
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return gelu(x) if torch.is_grad_enabled() or recorded else gelu_(x)

    def _folding_pays(self, x: Tensor) -> bool:
        """Whether the map that a norm would walk over is larger than the weights that folding walks over."""
        if torch.compiler.is_compiling():  # would become a guard on the size of the map
            return False
        height, width = self.conv.stride
        return x.shape[0] * x.shape[2] * x.shape[3] > height * width * self.conv.weight[0].numel()

    def _convolved(self, x: Tensor, layer_scale: Tensor | None, norm: nn.BatchNorm2d | None) -> Tensor:
        """``layer_scale * norm(conv(gelu(x)))`` as one convolution, without norm and scale where they are None."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return LeanConv.run(x, self.conv, norm, layer_scale, self.gelu)
        # nothing is kept for backward, or a compiler decides by itself what to keep
        weight, bias = (self.conv.weight, self.conv.bias) if norm is None else self._folded(layer_scale)
        return self.conv.using(self._activated(x), weight, bias)

    def _folded(self, layer_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does it all."""
        norm = self.norm
        _, scale, shift = folded(self.conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
        if layer_scale is not None:
            scale, shift = scale * layer_scale, shift * layer_scale
        return self.conv.weight * scale.view(-1, 1, 1, 1), shift

    @torch.inference_mode(False)  # whatever is on around: what is made here are weights like all others
    @torch.no_grad()
    def fuse(self, layer_scale: Tensor | None = None) -> None:
        """Folds norm and layer scale into the convolution for good; the module cannot train any more."""
        if self.norm is None:
            return
        weight, bias = self._folded(layer_scale)
        self.conv.weight, self.conv.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
        self.norm = None
