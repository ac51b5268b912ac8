"""A convolution, with what stands around it, that keeps nothing but its input for backward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .convolution import FIRST, LAST, Convolution


def gelu(x: Tensor) -> Tensor:
    """GELU of a map; half as long where a channels-last map is seen as the contiguous tensor that it is."""
    return F.gelu(x.permute(LAST)).permute(FIRST)


def gelu_(x: Tensor) -> Tensor:
    torch.ops.aten.gelu_(x.permute(LAST))
    return x


def folded(
    bias: Tensor | None, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A norm after a convolution with ``bias`` as scale and shift of the bare convolution.

    Returns:
        One over the deviation, the scale, the shift, (C,) each
    """
    inverse = torch.rsqrt(var + eps)
    scale = gamma * inverse
    return inverse, scale, beta - (mean if bias is None else mean - bias) * scale


class LeanConv(torch.autograd.Function):
    """``layer_scale * norm(conv(gelu(x)))`` with a frozen norm, as one convolution.

    Beyond parameters it keeps ``x``. Activation and folded weight are computed again for backward: cheap beside the
    convolution, and large. GELU, norm and layer scale may each be left out.
    """

    @staticmethod
    def run(
        x: Tensor, conv: Convolution, norm: nn.BatchNorm2d | None, layer_scale: Tensor | None, activate: bool
    ) -> Tensor:
        weight = conv.weight
        if x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        affine = (None, None, None, None, 0.0)
        if norm is not None:
            affine = norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
        return LeanConv.apply(x, weight, conv.bias, layer_scale, *affine, conv, activate)

    @staticmethod
    def forward(ctx, x, weight, bias, layer_scale, gamma, beta, mean, var, eps, conv, activate):
        ctx.save_for_backward(x, weight, bias, layer_scale, gamma, beta, mean, var)
        ctx.eps, ctx.conv, ctx.activate = eps, conv, activate
        if gamma is not None:
            _, scale, bias = folded(bias, gamma, beta, mean, var, eps)
            if layer_scale is not None:
                scale, bias = scale * layer_scale, bias * layer_scale
            weight = weight * scale.to(weight.dtype).view(-1, 1, 1, 1)
        bias = None if bias is None else bias.to(weight.dtype)
        return conv.using(gelu(x) if activate else x, weight, bias, own=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, layer_scale, gamma, beta, mean, var = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_layer_scale, needs_gamma, needs_beta = ctx.needs_input_grad[:6]
        needs_scale = needs_gamma or needs_layer_scale
        if gamma is not None:
            inverse, scale, shift = folded(bias, gamma, beta, mean, var, ctx.eps)
            column = (scale if layer_scale is None else scale * layer_scale).to(weight.dtype).view(-1, 1, 1, 1)
        activated, whole = gelu(x) if ctx.activate else x, weight if gamma is None else weight * column
        needs = needs_x, needs_weight or needs_scale, needs_bias or needs_beta or needs_scale
        grad_x, grad_weight, grad_shift = _convolution_backward(grad, activated, whole, ctx.conv, needs)
        if ctx.activate and needs_x:
            place = grad_x.permute(LAST)  # its own: new memory costs as much as the work
            torch.ops.aten.gelu_backward.grad_input(place, x.permute(LAST), grad_input=place)
        if gamma is None:
            return grad_x, grad_weight, grad_shift, *(None,) * 8
        grad_scale = grad_layer_scale = grad_gamma = None
        grad_shift = None if grad_shift is None else grad_shift.to(scale.dtype)
        if needs_scale:
            grad_scale = (grad_weight * weight).sum((1, 2, 3), dtype=scale.dtype)
        if needs_layer_scale:
            grad_layer_scale = grad_scale * scale + grad_shift * shift
        if layer_scale is not None:
            grad_scale, grad_shift = (None if g is None else g * layer_scale for g in (grad_scale, grad_shift))
        if needs_gamma:
            grad_gamma = (grad_scale - grad_shift * (mean if bias is None else mean - bias)) * inverse
        return (
            grad_x,
            grad_weight * column if needs_weight else None,
            grad_shift * scale if needs_bias else None,
            grad_layer_scale,
            grad_gamma,
            grad_shift if needs_beta else None,
            *(None,) * 5,
        )


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Convolution, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias, each where it is needed."""
    if x.is_contiguous(memory_format=torch.channels_last):
        grad = grad.contiguous(memory_format=torch.channels_last)  # mixed layouts are many times slower
    if not conv.pointwise:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, [grad.shape[1]], conv.stride, conv.padding, [1, 1], False, [0, 0], conv.groups, needs
        )
    # as what a 1x1 convolution is, matrix products: a quarter faster than as a convolution
    rows_grad = grad.permute(LAST).flatten(0, 2)  # (pixels, out_channels), a view of a channels-last map
    grad_x = grad_weight = grad_shift = None
    if needs[0]:
        grad_x = (rows_grad @ weight.flatten(1)).unflatten(0, (x.shape[0], *x.shape[2:])).permute(FIRST)
    if needs[1]:
        grad_weight = (rows_grad.t() @ x.permute(LAST).flatten(0, 2)).view_as(weight)
    if needs[2]:
        grad_shift = rows_grad.sum(0)
    return grad_x, grad_weight, grad_shift
