"""ConvNorm: the one place where a convolution meets its norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .packed import PackedConv

_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels to the last place and back


def gelu(x: Tensor) -> Tensor:
    """GELU of a map; half as long where a channels-last map is seen as the contiguous tensor that it is."""
    return F.gelu(x.permute(_LAST)).permute(_FIRST)


def gelu_(x: Tensor) -> Tensor:
    torch.ops.aten.gelu_(x.permute(_LAST))
    return x


class ConvNorm(nn.Module):
    """A convolution followed by batch norm, with 'same' padding for odd kernels.

    A norm that does not train is a scale and a shift, and belongs inside the convolution: always where gradients are
    wanted, elsewhere where that is less work. For backward a convolution keeps its input and nothing else
    (:class:`_LeanConv`). The state dict never changes; :meth:`fuse` folds for good.

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
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(out_channels)
        self.gelu, self.relu = gelu, relu
        self.packed = PackedConv()
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, layer_scale: Tensor | None = None) -> Tensor:
        """Convolves and normalises; ``layer_scale`` (C,) multiplies the result and is folded in as well."""
        if self.norm is None and PackedConv.serves(x):
            return self.packed(self.conv, self._activated(x), self.relu)
        if self.norm is None:
            x = self.conv(self._activated(x))
        elif not self.norm.training and (torch.is_grad_enabled() or self._folding_pays(x)):
            x = self._convolved(x, *self.scale_and_shift(layer_scale))
        else:
            x = self.norm(self._convolved(x, None, self.conv.bias))
            x = x if layer_scale is None else x * layer_scale.view(-1, 1, 1)
        return F.relu_(x) if self.relu else x

    def _activated(self, x: Tensor) -> Tensor:
        if not self.gelu:
            return x
        # In place where nothing is kept: `x` is the result of the convolution before, which nobody else sees.
        return gelu(x) if torch.is_grad_enabled() or torch.compiler.is_compiling() else gelu_(x)

    def _folding_pays(self, x: Tensor) -> bool:
        """Whether the map that a norm would walk over is larger than the weights that folding walks over."""
        if torch.compiler.is_compiling():  # would become a guard on the size of the map
            return False
        height, width = self.conv.stride
        return x.shape[0] * x.shape[2] * x.shape[3] > height * width * self.conv.weight[0].numel()

    def _convolved(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """``conv(gelu(x), weight * scale) + shift``."""
        weight, conv = self.conv.weight, self.conv
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type):
                dtype = torch.get_autocast_dtype(x.device.type)
                x, weight, scale, shift = (t if t is None else t.to(dtype) for t in (x, weight, scale, shift))
            return _LeanConv.apply(x, weight, scale, shift, conv.stride, conv.padding, conv.groups, self.gelu)
        # autocast does its work by itself, and a compiler decides by itself what to keep
        weight = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(self._activated(x), weight, shift, conv.stride, conv.padding, groups=conv.groups)

    def scale_and_shift(self, layer_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the frozen norm and the layer scale do to the bare convolution of ``conv.weight``, (C,) each."""
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if self.conv.bias is None else norm.running_mean - self.conv.bias
        shift = norm.bias - mean * scale
        return (scale, shift) if layer_scale is None else (scale * layer_scale, shift * layer_scale)

    @torch.no_grad()
    def fuse(self, layer_scale: Tensor | None = None) -> None:
        """Folds norm and layer scale into the convolution for good; the module cannot train any more."""
        if self.norm is None:
            return
        scale, shift = self.scale_and_shift(layer_scale)
        self.conv.weight = nn.Parameter(self.conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
        self.conv.bias = nn.Parameter(shift, requires_grad=False)
        self.norm = None


class _LeanConv(torch.autograd.Function):
    """``conv(gelu(x), weight * scale) + shift``, keeping ``x``, ``weight`` and ``scale`` for backward.

    The activation and the folded weight are computed again: cheap beside the convolution, and large.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, stride, padding, groups, activate):
        ctx.save_for_backward(x, weight, scale)
        ctx.settings = stride, padding, groups
        ctx.gelu = activate
        folded = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(gelu(x) if activate else x, folded, shift, stride, padding, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        stride, padding, groups = ctx.settings
        if x.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous(memory_format=torch.channels_last)  # mixed layouts are many times slower
        needs_x, needs_weight, needs_scale, needs_shift = ctx.needs_input_grad[:4]
        column = None if scale is None else scale.view(-1, 1, 1, 1)
        activated, folded = gelu(x) if ctx.gelu else x, weight if scale is None else weight * column
        needs = [needs_x, needs_weight or needs_scale, needs_shift]
        if weight.shape[2:] == (1, 1) and stride == (1, 1):
            grad_x, grad_folded, grad_shift = _pointwise_backward(grad, activated, folded, needs)
        else:
            grad_x, grad_folded, grad_shift = torch.ops.aten.convolution_backward(
                grad, activated, folded, [grad.shape[1]], stride, padding, [1, 1], False, [0, 0], groups, needs
            )
        if ctx.gelu and needs_x:
            grad_x = torch.ops.aten.gelu_backward(grad_x.permute(_LAST), x.permute(_LAST)).permute(_FIRST)
        grad_weight = grad_folded if scale is None or not needs_weight else grad_folded * column
        grad_scale = (grad_folded * weight).sum((1, 2, 3)) if needs_scale else None
        return grad_x, grad_weight if needs_weight else None, grad_scale, grad_shift, None, None, None, None


def _pointwise_backward(grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
    """The backward of a 1x1 convolution as what it is, matrix products: a quarter faster than as a convolution."""
    rows_grad = grad.permute(_LAST).flatten(0, 2)  # (pixels, out_channels), a view of a channels-last map
    grad_x = grad_weight = grad_shift = None
    if needs[0]:
        grad_x = (rows_grad @ weight.flatten(1)).unflatten(0, (x.shape[0], *x.shape[2:])).permute(_FIRST)
    if needs[1]:
        grad_weight = (rows_grad.t() @ x.permute(_LAST).flatten(0, 2)).view_as(weight)
    if needs[2]:
        grad_shift = rows_grad.sum(0)
    return grad_x, grad_weight, grad_shift
