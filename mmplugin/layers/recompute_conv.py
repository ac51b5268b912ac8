"""A convolution with folded norm and GELU that saves only its input for backward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import torch_internals
from .activations import gelu, gelu_backward_
from .convolution import FIRST, LAST, FastConv2d


def recompute_conv(x: Tensor, conv: FastConv2d, scale: Tensor | None, shift: Tensor | None, pre_gelu: bool) -> Tensor:
    """Return ``conv(gelu(x)) * scale + shift``, the bias of ``conv`` ignored: see ``RecomputeConv``."""
    weight = conv.weight
    if x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return RecomputeConv.apply(x, weight, scale, shift, conv, pre_gelu)


class RecomputeConv(torch.autograd.Function):
    """``conv(gelu(x)) * scale + shift`` as one convolution with the weight ``weight * scale``.

    Beyond parameters and (C,) vectors it saves only ``x``. GELU and the scaled weight are large, but cheap compared
    to the convolution, and are computed again in backward.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, conv, pre_gelu):
        """Take ``x`` (B, C, H, W), ``weight`` as in ``conv``, ``scale`` and ``shift`` (out_channels,) or None."""
        ctx.save_for_backward(x, weight, scale)
        ctx.conv, ctx.pre_gelu = conv, pre_gelu
        shift = None if shift is None else shift.to(weight.dtype)
        return conv.conv_with(gelu(x) if pre_gelu else x, scaled_weight(weight, scale), shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Return the gradients of ``x``, ``weight``, ``scale`` and ``shift``."""
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, needs_scale, needs_shift = ctx.needs_input_grad[:4]
        grad_x, grad_scaled_weight, grad_shift = convolution_backward(
            grad,
            gelu(x) if ctx.pre_gelu else x,
            scaled_weight(weight, scale),
            ctx.conv,
            (needs_x, needs_weight or needs_scale, needs_shift),
        )
        if ctx.pre_gelu and needs_x:
            grad_x = gelu_backward_(grad_x, x)  # in place: allocating a map costs as much as the work
        grad_weight = scaled_weight(grad_scaled_weight, scale) if needs_weight else None
        grad_scale = (grad_scaled_weight * weight).sum((1, 2, 3), dtype=scale.dtype) if needs_scale else None
        return grad_x, grad_weight, grad_scale, grad_shift, None, None


def scaled_weight(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Scale a convolution's weight by output channel."""
    return weight if scale is None else weight * scale.to(weight.dtype).view(-1, 1, 1, 1)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: FastConv2d, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias, each if it is needed."""
    if x.is_contiguous(memory_format=torch.channels_last):
        grad = grad.contiguous(memory_format=torch.channels_last)  # mixed layouts are many times slower
    if not conv.pointwise:
        return tuple(torch_internals.convolution_backward(grad, x, weight, conv, needs))
    # as matrix products: a quarter faster than as a convolution
    grad_rows = grad.permute(LAST).flatten(0, 2)  # (B * H * W, out_channels)
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = (grad_rows @ weight.flatten(1)).unflatten(0, (x.shape[0], *x.shape[2:])).permute(FIRST)
    if needs[1]:
        grad_weight = (grad_rows.t() @ x.permute(LAST).flatten(0, 2)).view_as(weight)
    if needs[2]:
        grad_bias = grad_rows.sum(0)
    return grad_x, grad_weight, grad_bias
