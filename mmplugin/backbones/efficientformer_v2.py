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

from .base import DenseBackbone, FusesScales, Stage, integers

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

    heads, key_dim, value_dim = 8, 32, 128

    def __init__(self, channels: int, stride: int, attention_bias: str, bias_grid: int):
        super().__init__()
        values = self.heads * self.value_dim
        self.stride_conv = ConvNorm(channels, channels, 3, stride, groups=channels) if stride > 1 else None
        self.q = ConvNorm(channels, self.heads * self.key_dim)
        self.k = ConvNorm(channels, self.heads * self.key_dim)
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

    def __init__(self, channels: int, ratio: int, drop_path: float, attention: Attention | None):
        super().__init__()
        self.token_mixer = attention
        if attention is not None:
            self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.mlp = Mlp(channels, ratio * channels)
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
        arch: 's0', 's1', 's2', 'l', or a dict with the keys of a row of ``ARCHS``.
        attention_bias: 'offset' resizes the pretrained table to the map; 'upstream' is the authors' dense computation.
        bias_grid: Side of the stride-32 map that the bias tables were trained at: 7 (224 px) by default; with
            'upstream' 25, as in the authors' COCO checkpoints (16 in those for ADE20K).

    The other arguments are those of ``DenseBackbone``.
    """

    # ratios: width of each feed-forward network divided by that of its stage; attention: last blocks of stages 3 and 4
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
        widths, depths = self.settings['widths'], self.settings['depths']
        rates = drop_path_rates(self.drop_path_rate, depths)
        stages = []
        for i in range(self.num_stages):
            halving = AttentionDownsample(widths[2], widths[3], attention_bias, grid) if i == 3 else None
            first_attention = depths[i] - self.settings['attention_blocks'] if i >= 2 else depths[i]
            blocks = [
                Block(
                    widths[i],
                    self.settings['ratios'][i][j],
                    rates[i][j],
                    Attention(widths[i], 2 if i == 2 else 1, attention_bias, grid) if j >= first_attention else None,
                )
                for j in range(depths[i])
            ]
            stages.append(Stage(Downsample(widths[i - 1], widths[i], halving) if i else None, blocks, with_cp))
        self.finish(Stem(in_channels, widths[0]), stages)

    @classmethod
    def check_arch(cls, arch: dict) -> None:
        """Refuse keys and values that cannot be built."""
        super().check_arch(arch)
        cls._require(integers([arch['attention_blocks']], 0), arch, 'attention_blocks', 'an integer of 0 or more')
        ratios, depths = arch['ratios'], arch['depths']
        valid = isinstance(ratios, list | tuple) and len(ratios) == len(depths)
        valid = valid and all(
            integers(of_stage, 1, n) or (n == 0 and not of_stage) for of_stage, n in zip(ratios, depths, strict=True)
        )
        cls._require(valid, arch, 'ratios', f'for every stage an integer per block; the depths are {tuple(depths)}')
