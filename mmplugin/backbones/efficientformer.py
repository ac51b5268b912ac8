"""EfficientFormer (V1): Vision Transformers at MobileNet Speed.

Li et al., NeurIPS 2022, https://arxiv.org/abs/2206.01191. Written from the paper; names of blocks follow it. The
authors' code and weights: https://github.com/snap-research/EfficientFormer (Snap Inc.; mind their licence).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmplugin.layers import BIASES, ConvNorm, DropPath, attend, drop_path_rates

from .base import DenseBackbone, FusesScales, Stage

LAYER_SCALE = 1e-5  # initial value, as in the paper's code


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(
            ConvNorm(in_channels, channels // 2, 3, 2, relu=True),
            nn.Identity(),  # keeps the numbering of the weights' names: convolutions at 0 and 2
            ConvNorm(channels // 2, channels, 3, 2, relu=True),
        )


class Pooling(nn.Module):
    """Token mixer without parameters, its layer scale and its residual: ``x + layer_scale * (mean around x - x)``."""

    def __init__(self, drop_path: float):
        super().__init__()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layer_scale: Tensor) -> Tensor:
        layer_scale = layer_scale.view(-1, 1, 1).to(x.dtype)
        if self.training and self.drop_path.rate:
            return x + self.drop_path(layer_scale * (_mean_around(x) - x))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _Pooling.apply(x, layer_scale)
        return torch.lerp(x, _mean_around(x), layer_scale)


def _mean_around(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Pooling(torch.autograd.Function):
    """Keeps ``x`` for backward, and neither the means nor the differences."""

    @staticmethod
    def forward(ctx, x, layer_scale):
        ctx.save_for_backward(x, layer_scale)
        return torch.lerp(x, _mean_around(x), layer_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, layer_scale = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        scaled_grad = grad * layer_scale
        grad_x = torch.ops.aten.avg_pool2d_backward(scaled_grad, x, [3, 3], [1, 1], [1, 1], False, False, None)
        grad_scale = (grad * (_mean_around(x) - x)).sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return grad_x.add_(grad).sub_(scaled_grad), None if grad_scale is None else grad_scale.view(-1, 1, 1)


class ConvMlp(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.fc2 = ConvNorm(hidden, channels, gelu=True)

    def forward(self, x: Tensor, layer_scale: Tensor | None) -> Tensor:
        return self.fc2(self.fc1(x), layer_scale)


class LinearMlp(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, with a bias by offset."""

    heads, key_dim, value_dim = 8, 32, 128

    def __init__(self, channels: int, attention_bias: str, bias_grid: int):
        super().__init__()
        self.qkv = nn.Linear(channels, self.heads * (2 * self.key_dim + self.value_dim))
        self.proj = nn.Linear(self.heads * self.value_dim, channels)
        self.attention_biases = BIASES[attention_bias](self.heads, bias_grid)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, _ = x.shape
        # (B, heads, key_dim | key_dim | value_dim, N)
        qkv = self.qkv(x).view(batch, tokens, self.heads, -1).permute(0, 2, 3, 1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], 2)
        x = attend(q, k, v, self.attention_biases, (height, width))
        return self.proj(x.flatten(2).transpose(1, 2))


def scaled(layer_scale: Tensor | None, x: Tensor) -> Tensor:
    return x if layer_scale is None else layer_scale * x


class PoolBlock(nn.Module, FusesScales):
    """MB4D: pooling, then an MLP of 1x1 convolutions, on maps (B, C, H, W)."""

    def __init__(self, channels: int, drop_path: float):
        super().__init__()
        self.token_mixer = Pooling(drop_path)
        self.mlp = ConvMlp(channels, 4 * channels)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x, self.layer_scale_1)
        return self.drop_path(self.mlp(x, self.layer_scale_2)).add_(x)

    def fuse_scales(self) -> None:
        self.mlp.fc2.fuse(self.layer_scale_2)
        self.layer_scale_2 = None


class AttentionBlock(nn.Module, FusesScales):
    """MB3D: attention, then a linear MLP, with layer norm, on tokens (B, N, C).

    Takes and returns maps all the same; between two such blocks the change of layout is a view.
    """

    def __init__(self, channels: int, drop_path: float, attention_bias: str, bias_grid: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.token_mixer = Attention(channels, attention_bias, bias_grid)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = LinearMlp(channels, 4 * channels)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.drop_path(scaled(self.layer_scale_1, self.token_mixer(self.norm1(x), height, width)))
        x = x + self.drop_path(scaled(self.layer_scale_2, self.mlp(self.norm2(x))))
        return x.transpose(1, 2).unflatten(2, (height, width))

    @torch.no_grad()
    def fuse_scales(self) -> None:
        for linear, scale in ((self.token_mixer.proj, self.layer_scale_1), (self.mlp.fc2, self.layer_scale_2)):
            linear.weight.mul_(scale.view(-1, 1))
            linear.bias.mul_(scale)
        self.layer_scale_1 = self.layer_scale_2 = None


@MODELS.register_module()
class EfficientFormer(DenseBackbone):
    """EfficientFormer l1, l3, l7: strides 4, 8, 16, 32.

    Args:
        arch: 'l1', 'l3', 'l7', or a dict with the keys of a row of ``ARCHS``.
        attention_bias: 'offset' resizes the pretrained table to the map; 'upstream' is the authors' dense computation.
        bias_grid: Side of the stride-32 map that the bias tables were trained at: 7 (224 px) by default; with
            'upstream' 25, as in the authors' COCO checkpoints (16 in those for ADE20K).
        out_norm: A ``GroupNorm(1, C)`` on every feature map, as in the authors' dense code.

    The other arguments are those of :class:`DenseBackbone`.
    """

    ARCHS: ClassVar = {
        'l1': dict(widths=(48, 96, 224, 448), depths=(3, 2, 6, 4), attention_blocks=1),
        'l3': dict(widths=(64, 128, 320, 512), depths=(4, 4, 12, 6), attention_blocks=4),
        'l7': dict(widths=(96, 192, 384, 768), depths=(6, 6, 18, 8), attention_blocks=8),
    }
    STRIDES: ClassVar = (4, 8, 16, 32)

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: float | None = None,
        attention_bias: str = 'offset',
        bias_grid: int | None = None,
        out_norm: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **unknown: Any,
    ):
        super().__init__(
            arch, in_channels, out_indices, frozen_stages, norm_eval, drop_path_rate, with_cp, init_cfg, unknown
        )
        bias_grid = self.check_bias(attention_bias, bias_grid)
        widths, depths = self.settings['widths'], self.settings['depths']
        rates = drop_path_rates(self.drop_path_rate, depths)
        first_attention = depths[-1] - self.settings['attention_blocks']
        stages = []
        for i in range(self.num_stages):
            downsample = ConvNorm(widths[i - 1], widths[i], 3, 2) if i else None
            blocks = [
                AttentionBlock(widths[i], rate, attention_bias, bias_grid)
                if i == len(widths) - 1 and j >= first_attention
                else PoolBlock(widths[i], rate)
                for j, rate in enumerate(rates[i])
            ]
            stages.append(Stage(downsample, blocks, with_cp))
        norms = {str(i): nn.GroupNorm(1, widths[i]) for i in self.out_indices} if out_norm else {}
        self.finish(Stem(in_channels, widths[0]), stages, nn.ModuleDict(norms))
