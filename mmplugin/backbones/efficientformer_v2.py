"""EfficientFormerV2: Rethinking Vision Transformers for MobileNet Size and Speed.

Li et al., ICCV 2023, https://arxiv.org/abs/2212.08059. Written from the paper; names of blocks follow it. The
authors' code and weights: https://github.com/snap-research/EfficientFormer (Snap Inc.; see the repository's LICENSE).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmplugin.layers import BIASES, ConvNorm, DropPath, attend, compiled_for_inference, drop_path_rates, gelu

from .arch import ArchChecker, is_integer, is_listed
from .base import DenseBackbone, FusesScales, Stage

LAYER_SCALE = 1e-5  # initial value, as in the authors' code


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2, each followed by GELU."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(
            ConvNorm(in_channels, channels // 2, 3, 2),
            nn.Identity(),  # keeps the numbers in the weights' names: convolutions at 0 and 2, as in all families
            ConvNorm(channels // 2, channels, 3, 2, pre_act='gelu'),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, in_channels, H, W) to (B, channels, H / 4, W / 4)."""
        return gelu(self[2](self[0](x), overwrite_input=True))


class Mlp(nn.Module):
    """The unified feed-forward network: 1x1, depthwise 3x3, 1x1 (Section 3.1)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden, pre_act='gelu')
        self.fc2 = ConvNorm(hidden, channels, pre_act='gelu')

    def forward(self, x: Tensor, layer_scale: Tensor | None) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.mid(self.fc1(x), overwrite_input=True)
        return self.fc2(x, layer_scale, overwrite_input=True)


class Attention(nn.Module):
    """Self-attention with talking heads and a local branch on the values (Section 3.3).

    With ``stride`` 2 it runs at half the resolution (stride attention, Section 3.4).
    """

    heads = 8

    def __init__(self, channels: int, stride: int, key_dim: int, value_dim: int, attention_bias: str, bias_grid: int):
        super().__init__()
        self.key_dim, values = key_dim, self.heads * value_dim
        self.stride_conv = ConvNorm(channels, channels, 3, stride, groups=channels) if stride > 1 else None
        self.q = ConvNorm(channels, self.heads * key_dim)
        self.k = ConvNorm(channels, self.heads * key_dim)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, groups=values)
        self.talking_head1 = nn.Conv2d(self.heads, self.heads, 1)
        self.talking_head2 = nn.Conv2d(self.heads, self.heads, 1)
        self.proj = ConvNorm(values, channels, pre_act='gelu')
        self.attention_biases = BIASES[attention_bias](self.heads, bias_grid)

    def forward(self, x: Tensor, layer_scale: Tensor | None) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        height, width = x.shape[-2:]
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        size = x.shape[-2:]
        v = self.v(x)
        q, k, v_heads = (t.flatten(2).unflatten(1, (self.heads, -1)) for t in (self.q(x), self.k(x), v))  # (B, h, d, N)
        x = attend(q, k, v_heads, self.attention_biases, size, (self.talking_head1, self.talking_head2))
        x = self.v_local(v) + x
        if self.stride_conv is not None:
            x = upsample2x(x, height, width)
        return self.proj(x, layer_scale, overwrite_input=True)


def upsample2x(x: Tensor, height: int, width: int) -> Tensor:
    """Double both sides (bilinear), then crop: an odd map keeps the sampling grid of the strided convolution."""
    if compiled_for_inference():
        return _upsample2x_operator(x, height, width)
    return F.interpolate(x, scale_factor=2, mode='bilinear')[..., :height, :width]


@torch.library.custom_op('mmplugin::upsample2x', mutates_args=())
def _upsample2x_operator(x: Tensor, height: int, width: int) -> Tensor:
    """Run as one operator in a graph compiled for inference: what inductor generates on a CPU is many times slower."""
    x = F.interpolate(x, scale_factor=2, mode='bilinear')[..., :height, :width]
    return x.contiguous(memory_format=torch.channels_last)


@_upsample2x_operator.register_fake
def _(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, x.shape[1]).permute(0, 3, 1, 2)


class LocalGlobalQuery(nn.Module):
    """Queries at half the resolution: a subsampled map plus a strided depthwise convolution."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
        self.proj = ConvNorm(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        return self.proj(self.local(x) + x[..., ::2, ::2])


class AttentionDownsample(nn.Module):
    """Attention whose queries have half the resolution (Section 3.5)."""

    heads, key_dim, value_dim = 8, 16, 64

    def __init__(self, channels: int, out_channels: int, attention_bias: str, bias_grid: int):
        super().__init__()
        values = self.heads * self.value_dim
        self.q = LocalGlobalQuery(channels, self.heads * self.key_dim)
        self.k = ConvNorm(channels, self.heads * self.key_dim)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, 2, groups=values)
        self.proj = ConvNorm(values, out_channels, pre_act='gelu')
        self.attention_biases = BIASES[attention_bias](self.heads, 2 * bias_grid, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        v = self.v(x)
        q, k, v_heads = (t.flatten(2).unflatten(1, (self.heads, -1)) for t in (self.q(x), self.k(x), v))  # (B, h, d, N)
        x = attend(q, k, v_heads, self.attention_biases, x.shape[-2:])
        return self.proj(self.v_local(v) + x, overwrite_input=True)


class Downsample(nn.Module):
    """A strided convolution, plus attention before the last stage."""

    def __init__(self, channels: int, out_channels: int, attention: nn.Module | None):
        super().__init__()
        self.conv = ConvNorm(channels, out_channels, 3, 2)
        self.attn = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        return self.conv(x) if self.attn is None else self.conv(x) + self.attn(x)


class Block(nn.Module, FusesScales):
    """Attention in some blocks, the feed-forward network in all."""

    layer_scale_1: nn.Parameter | None
    layer_scale_2: nn.Parameter | None

    def __init__(self, channels: int, hidden: int, drop_path: float, attention: Attention | None):
        super().__init__()
        self.token_mixer = attention
        if attention is not None:
            self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.mlp = Mlp(channels, hidden)
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if self.token_mixer is not None:
            x = x + self.drop_path(self.token_mixer(x, self.layer_scale_1))
        return x + self.drop_path(self.mlp(x, self.layer_scale_2))

    def fuse_scales(self) -> None:
        """Fold the layer scales into the convolutions before them."""
        if self.token_mixer is not None:
            self.token_mixer.proj.fuse(self.layer_scale_1)
            self.layer_scale_1 = None
        self.mlp.fc2.fuse(self.layer_scale_2)
        self.layer_scale_2 = None


@MODELS.register_module()
class EfficientFormerV2(DenseBackbone):
    """EfficientFormerV2 s0, s1, s2, l: strides 4, 8, 16, 32.

    Args:
        arch: 's0', 's1', 's2', 'l', or a dict with the keys of a row of ``ARCHS``; ``key_dim`` and
            ``value_dim`` are optional, ``hidden`` may stand for ``ratios`` (docs/backbones.md).
        attention_bias: 'offset' resizes the pretrained table to the map; 'upstream' is the authors' dense computation.
        bias_grid: Side of the stride-32 map that the bias tables were trained at: 7 (224 px) by default; with
            'upstream' 25, as in the authors' COCO checkpoints (16 in those for ADE20K).

    The other arguments are those of ``DenseBackbone``.
    """

    # ratios: hidden channels of each feed-forward network divided by the width of its stage
    # attention_blocks: the last blocks of stages 3 and 4 that have attention; a pair where the stages differ
    ARCHS: ClassVar = {
        's0': dict(
            widths=(32, 48, 96, 176),
            depths=(2, 2, 6, 4),
            attention_blocks=2,
            ratios=((4, 4), (4, 4), (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
            drop_path_rate=0.0,
        ),
        's1': dict(
            widths=(32, 48, 120, 224),
            depths=(3, 3, 9, 6),
            attention_blocks=2,
            ratios=((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
            drop_path_rate=0.0,
        ),
        's2': dict(
            widths=(32, 64, 144, 288),
            depths=(4, 4, 12, 8),
            attention_blocks=4,
            ratios=((4,) * 4, (4,) * 4, (4, 4, *(3,) * 6, *(4,) * 4), (4, 4, *(3,) * 4, 4, 4)),
            drop_path_rate=0.02,
        ),
        'l': dict(
            widths=(40, 80, 192, 384),
            depths=(5, 5, 15, 10),
            attention_blocks=6,
            ratios=((4,) * 5, (4,) * 5, (*(4,) * 4, *(3,) * 7, *(4,) * 4), (*(4,) * 3, *(3,) * 4, *(4,) * 3)),
            drop_path_rate=0.1,
        ),
    }
    STRIDES: ClassVar = (4, 8, 16, 32)
    OPTIONAL: ClassVar = ('key_dim', 'value_dim')
    KEY_DIM, VALUE_DIM = 32, 128  # of each head, where the arch does not say

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
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(
            arch=arch,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        grid = self.check_bias(attention_bias, bias_grid)
        arch = self.explicit(self.settings)
        widths, depths = arch['widths'], arch['depths']
        rates = drop_path_rates(self.drop_path_rate, depths)
        stages = []
        for i in range(self.num_stages):
            halving = AttentionDownsample(widths[2], widths[3], attention_bias, grid) if i == 3 else None
            first_attention = depths[i] - arch['attention_blocks'][i - 2] if i >= 2 else depths[i]
            blocks = []
            for j in range(depths[i]):
                attention = None
                if j >= first_attention:
                    dims = arch['key_dim'], arch['value_dim']
                    attention = Attention(widths[i], 2 if i == 2 else 1, *dims, attention_bias, grid)
                blocks.append(Block(widths[i], arch['hidden'][i][j], rates[i][j], attention))
            stages.append(Stage(Downsample(widths[i - 1], widths[i], halving) if i else None, blocks, with_cp))
        self.finish(Stem(in_channels, widths[0]), stages)

    @classmethod
    def explicit(cls, arch: str | dict) -> dict:
        """Return an arch as a dict in which every default is filled in."""
        result = super().explicit(arch)  # checks it
        settings = cls.ARCHS[arch] if isinstance(arch, str) else arch
        blocks = settings['attention_blocks']
        pair = blocks if isinstance(blocks, list | tuple) else [min(blocks, depth) for depth in result['depths'][2:]]
        return dict(
            result,
            attention_blocks=tuple(map(int, pair)),
            key_dim=int(settings.get('key_dim', cls.KEY_DIM)),
            value_dim=int(settings.get('value_dim', cls.VALUE_DIM)),
        )

    @classmethod
    def _check_family(
        cls, checker: ArchChecker, widths: tuple[int, ...] | None, depths: tuple[int, ...] | None
    ) -> None:
        blocks = checker.arch['attention_blocks']
        if is_listed(blocks, 2):
            for i, value in enumerate(blocks):
                most = depths[2 + i] if depths else 1024
                if not is_integer(value, 0, most):
                    checker.refuse(f'attention_blocks, stage {3 + i},', value, f'integers from 0 to {most}, its depth')
        else:
            most = max(depths[2:]) if depths else 1024
            if not is_integer(blocks, 0, most):
                allowed = (
                    f'an integer from 0 to {most}, the depth of stages 3 and 4, or a pair of integers, one for each'
                )
                checker.refuse('attention_blocks', blocks, allowed)
        for key in ('key_dim', 'value_dim'):
            checker.integer(key, 1, 1024)
        if 'ratios' not in checker.arch and 'hidden' not in checker.arch:
            checker.problems.append('ratios is missing; required: ratios or hidden, for each stage a number per block')
