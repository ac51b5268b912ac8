"""ConvNorm: activation, convolution, batch norm and layer scale in as few passes over the map as possible."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import gelu, gelu_
from .convolution import FastConv2d
from .recompute_conv import recompute_conv, scaled_weight


class ConvNorm(nn.Module):
    """``post_act(layer_scale * norm(conv(pre_act(x))))`` with 'same' padding for odd kernels.

    A norm that does not train is a scale and a shift, which are folded into the convolution: always with gradients,
    and at inference if that is less work. In training, only ``x`` is saved for backward; that is why GELU belongs to
    the convolution after it. The state dict never changes; ``fuse`` folds permanently.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd side of the kernel.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        bias: Whether the convolution has a bias in addition to the norm's shift, as in some published weights.
        pre_act: Activation of the input.
        post_act: Activation of the output.
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
        pre_act: Literal['gelu'] | None = None,
        post_act: Literal['relu'] | None = None,
        zero_init: bool = False,
    ):
        super().__init__()
        if pre_act not in (None, 'gelu') or post_act not in (None, 'relu'):
            raise ValueError(
                f"pre_act is {pre_act!r}, allowed: 'gelu', None; post_act is {post_act!r}, allowed: 'relu', None"
            )
        self.conv = FastConv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias
        )
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(out_channels)
        self.pre_act, self.post_act = pre_act, post_act
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor, layer_scale: Tensor | None = None, overwrite_input: bool = False) -> Tensor:
        """Run all of it.

        Args:
            x: Map (B, C, H, W).
            layer_scale: Factors (out_channels,) of the result.
            overwrite_input: Allow ``pre_act`` to overwrite ``x`` where nothing is recorded. Only for callers that own
                ``x`` and do not use it again.
        """
        if self.norm is None:
            return self.conv(self._pre_activate(x, overwrite_input), relu=self.post_act == 'relu')
        if not self.norm.training and (torch.is_grad_enabled() or self._folding_pays(x)):
            x = self._convolve(x, *self._scale_shift(self.norm, layer_scale), overwrite_input)
        else:
            x = self.norm(self._convolve(x, None, self.conv.bias, overwrite_input))
            x = x if layer_scale is None else x * layer_scale.view(-1, 1, 1)
        if self.post_act is None:
            return x
        # In place, inference of EfficientViT m2 peaks at 9.1 instead of 11.0 MiB (512x512). With gradients ``x`` may be
        # a view from RecomputeConv, which autograd does not allow to overwrite.
        return F.relu(x) if torch.is_grad_enabled() else F.relu_(x)

    def _pre_activate(self, x: Tensor, overwrite_input: bool) -> Tensor:
        if self.pre_act is None:
            return x
        # In place, inference of EfficientFormerV2 s0 takes 7-10 % less time and peaks at 20 instead of 28 MiB, that of
        # EfficientFormer l1 3-14 % and 24 instead of 36 MiB: 2026-11-25, 512x512, one core, eager and fused, medians of
        # 25 interleaved rounds of ``with torch.no_grad(): model(x)`` with and without this line's ``gelu_``.
        recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
        return gelu_(x) if overwrite_input and not recorded else gelu(x)

    def _convolve(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, overwrite_input: bool) -> Tensor:
        """Return ``conv(pre_act(x)) * scale + shift``, the bias of the convolution ignored."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a compiler decides by itself what to save
            return recompute_conv(x, self.conv, scale, shift, self.pre_act == 'gelu')
        return self.conv.conv_with(
            self._pre_activate(x, overwrite_input), scaled_weight(self.conv.weight, scale), shift
        )

    def _folding_pays(self, x: Tensor) -> bool:
        """Return whether the norm's pass over the map is longer than folding's pass over the weight."""
        if torch.compiler.is_compiling():  # would become a guard on the size of the map
            return False
        height, width = self.conv.stride
        return x.shape[0] * x.shape[2] * x.shape[3] > height * width * self.conv.weight[0].numel()

    def _scale_shift(self, norm: nn.BatchNorm2d, layer_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return norm and layer scale as scale and shift (out_channels,) of the convolution without bias."""
        scale, shift = bn_scale_shift(norm, self.conv.bias)
        return (scale, shift) if layer_scale is None else (scale * layer_scale, shift * layer_scale)

    @torch.inference_mode(False)  # creates normal parameters even when called under inference_mode
    @torch.no_grad()
    def fuse(self, layer_scale: Tensor | None = None) -> None:
        """Fold norm and layer scale into the convolution permanently; the module cannot be trained afterwards."""
        if self.norm is None:
            return
        scale, shift = self._scale_shift(self.norm, layer_scale)
        self.conv.weight = nn.Parameter(scaled_weight(self.conv.weight, scale), requires_grad=False)
        self.conv.bias = nn.Parameter(shift, requires_grad=False)
        self.norm = None


def bn_scale_shift(norm: nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a frozen norm after a convolution with ``bias`` as scale and shift (C,) of the convolution without it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return scale, norm.bias - mean * scale
