"""Microsoft's EfficientViT (m0 to m5; not MIT's network of the same name): Memory Efficient Vision Transformer with
Cascaded Group Attention.

Liu et al., CVPR 2023, https://arxiv.org/abs/2305.07027. Written from the paper. The authors' code and weights:
https://github.com/microsoft/Cream/tree/main/EfficientViT (MIT licence).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmplugin.layers import ConvNorm, DropPath, OffsetBias, drop_path_rates, remembered, resize_matrix, unfolded

from .base import DenseBackbone, Stage

WINDOW = 7
KEY_DIM = 16


class Stem(nn.Sequential):
    """Overlapping patch embedding: four 3x3 convolutions of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        widths = (in_channels, channels // 8, channels // 4, channels // 2, channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            # the identities keep the numbering of the published weights' names
            layers += [ConvNorm(before, after, 3, 2, bias=False, relu=after < channels), nn.Identity()]
        super().__init__(*layers[:-1])


class Mlp(nn.Module):
    def __init__(self, channels: int, zero_init: bool):
        super().__init__()
        self.pw1 = ConvNorm(channels, 2 * channels, bias=False, relu=True)
        self.pw2 = ConvNorm(2 * channels, channels, bias=False, zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.pw1(x))


class TokenInteraction(ConvNorm):
    """A depthwise 3x3 convolution."""

    def __init__(self, channels: int, zero_init: bool):
        super().__init__(channels, channels, 3, groups=channels, bias=False, zero_init=zero_init)


@remembered
def shrink_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The least-squares inverse of enlarging a table from ``size`` to the window: (size, WINDOW)."""
    with torch.inference_mode(False):
        grow = resize_matrix(size, WINDOW, False, torch.device('cpu'), torch.float64)
        return torch.linalg.pinv(grow).to(device, dtype)


class WindowBias(OffsetBias):
    """The bias inside one window, and inside a map that is smaller than a window.

    The last stage was pretrained on 4x4 maps; converting its weights enlarges the table to the window's 7x7 (bicubic,
    as the authors do for detection). On a 4x4 map the pretrained table must come back, so shrinking is the inverse of
    enlarging.
    """

    def forward(self, height: int, width: int) -> Tensor:
        return self._remembered(self._matrix, height, width)

    def _offsets(self, height: int, width: int) -> Tensor:
        table = self.table.view(self.heads, WINDOW, WINDOW)
        if not height == width == WINDOW:
            rows, columns = (shrink_matrix(size, table.device, table.dtype) for size in (height, width))
            table = rows @ table @ columns.T
        return self.signed(table)

    def _matrix(self, height: int, width: int) -> Tensor:
        offsets = self._offsets(height, width)
        # in a whole window no size of an image occurs: all of it is a constant for a compiler
        whole = height == width == WINDOW
        windows = unfolded(offsets, WINDOW, WINDOW) if whole else self.rows(offsets, height, width, 1)
        return windows.flip(3, 4).reshape(self.heads, -1, height * width)


class CascadedGroupAttention(nn.Module):
    """Each head sees its own share of the channels, plus what the head before it made (the paper's Section 3.1)."""

    def __init__(self, channels: int, heads: int, kernels: Sequence[int]):
        super().__init__()
        share = channels // heads
        self.qkvs = nn.ModuleList(ConvNorm(share, 2 * KEY_DIM + share, bias=False) for _ in range(heads))
        self.dws = nn.ModuleList(
            ConvNorm(KEY_DIM, KEY_DIM, kernel, groups=KEY_DIM, bias=False) for kernel in kernels[:heads]
        )
        self.proj = ConvNorm(channels, channels, bias=False, zero_init=True)
        self.attention_biases = WindowBias(heads, WINDOW)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu_(self.heads(x)))

    def heads(self, x: Tensor) -> Tensor:
        """What all heads see, side by side."""
        shares = x.chunk(len(self.qkvs), 1)
        biases = self.attention_biases(*x.shape[-2:]).to(x.dtype)
        outputs: list[Tensor] = []
        for share, qkv, dw, bias in zip(shares, self.qkvs, self.dws, biases, strict=True):
            share = share + outputs[-1] if outputs else share
            q, k, v = qkv(share).split([KEY_DIM, KEY_DIM, share.shape[1]], 1)
            q, k, v = (t.flatten(2).transpose(1, 2) for t in (dw(q), k, v))  # (B, N, d)
            attn = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=KEY_DIM**-0.5).softmax(-1)
            outputs.append((attn @ v).transpose(1, 2).unflatten(2, share.shape[2:]))
        return torch.cat(outputs, 1)


class WindowAttention(CascadedGroupAttention):
    """Cascaded group attention in windows of 7x7; a map that fits in one is a window of its own size.

    The projection comes after the windows are joined, so that it (and its norm, where that learns) never sees padding.
    """

    def heads(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        if height <= WINDOW and width <= WINDOW:
            return super().heads(x)
        # in these words, torch.compile sees for every size that the windows fill the padded map
        rows, columns = -(-height // WINDOW), -(-width // WINDOW)
        x = F.pad(x, (0, columns * WINDOW - width, 0, rows * WINDOW - height))
        # Windows are cut and joined with the channels last, where a pixel's channels stay together.
        x = x.permute(0, 2, 3, 1).view(batch, rows, WINDOW, columns, WINDOW, channels).transpose(2, 3)
        x = super().heads(x.reshape(-1, WINDOW, WINDOW, channels).permute(0, 3, 1, 2))
        x = x.permute(0, 2, 3, 1).reshape(batch, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
        x = x.reshape(batch, rows * WINDOW, columns * WINDOW, channels).permute(0, 3, 1, 2)[..., :height, :width]
        # whether there is something to cut, and so to copy, would tie a graph to the size of the image
        copied = Tensor.clone if torch.compiler.is_compiling() else Tensor.contiguous
        return copied(x, memory_format=torch.channels_last)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu_(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class PatchMerging(nn.Module):
    """An inverted residual block of stride 2, without the residual."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        hidden = 4 * channels
        self.conv1 = ConvNorm(channels, hidden, bias=False, relu=True)
        self.conv2 = ConvNorm(hidden, hidden, 3, 2, groups=hidden, bias=False, relu=True)
        self.se = SqueezeExcite(hidden)
        self.conv3 = ConvNorm(hidden, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.se(self.conv2(self.conv1(x))))


class Downsample(nn.Module):
    """The sandwich of a block, with patch merging in the place of attention."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.dw0 = TokenInteraction(channels, zero_init=False)
        self.ffn0 = Mlp(channels, zero_init=False)
        self.merge = PatchMerging(channels, out_channels)
        self.dw1 = TokenInteraction(out_channels, zero_init=False)
        self.ffn1 = Mlp(out_channels, zero_init=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dw0(x).add_(x)
        x = self.merge(self.ffn0(x).add_(x))
        x = self.dw1(x).add_(x)
        return self.ffn1(x).add_(x)


class Block(nn.Module):
    """The sandwich: token interaction and feed-forward network, on both sides of attention."""

    def __init__(self, channels: int, heads: int, kernels: Sequence[int], drop_path: float):
        super().__init__()
        self.dw0 = TokenInteraction(channels, zero_init=True)
        self.ffn0 = Mlp(channels, zero_init=True)
        self.mixer = WindowAttention(channels, heads, kernels)
        self.dw1 = TokenInteraction(channels, zero_init=True)
        self.ffn1 = Mlp(channels, zero_init=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.dw0, self.ffn0, self.mixer, self.dw1, self.ffn1):
            x = self.drop_path(layer(x)).add_(x)
        return x


@MODELS.register_module()
class EfficientViTMSRA(DenseBackbone):
    """Microsoft's EfficientViT m0 to m5: strides 16, 32, 64. (MIT's EfficientViT, b0 to l3, is another network.)

    Args:
        arch: 'm0' to 'm5', or a dict with the keys of a row of ``ARCHS``.
        attention_bias: Only 'offset': the authors' dense code computes the same.

    The other arguments are those of :class:`DenseBackbone`.
    """

    # kernels: of the depthwise convolution on the queries, one for each head
    ARCHS: ClassVar = {
        'm0': dict(widths=(64, 128, 192), depths=(1, 2, 3), heads=(4, 4, 4), kernels=(5, 5, 5, 5)),
        'm1': dict(widths=(128, 144, 192), depths=(1, 2, 3), heads=(2, 3, 3), kernels=(7, 5, 3, 3)),
        'm2': dict(widths=(128, 192, 224), depths=(1, 2, 3), heads=(4, 3, 2), kernels=(7, 5, 3, 3)),
        'm3': dict(widths=(128, 240, 320), depths=(1, 2, 3), heads=(4, 3, 4), kernels=(5, 5, 5, 5)),
        'm4': dict(widths=(128, 256, 384), depths=(1, 2, 3), heads=(4, 4, 4), kernels=(7, 5, 3, 3)),
        'm5': dict(widths=(192, 288, 384), depths=(1, 3, 4), heads=(3, 3, 4), kernels=(7, 5, 3, 3)),
    }
    STRIDES: ClassVar = (16, 32, 64)

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        drop_path_rate: float | None = None,
        attention_bias: str = 'offset',
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **unknown: Any,
    ):
        super().__init__(
            arch, in_channels, out_indices, frozen_stages, norm_eval, drop_path_rate, with_cp, init_cfg, unknown
        )
        self.check_choice('attention_bias', attention_bias, ['offset'])
        widths, heads, kernels = (self.settings[key] for key in ('widths', 'heads', 'kernels'))
        rates = drop_path_rates(self.drop_path_rate, self.settings['depths'])
        stages = []
        for i in range(self.num_stages):
            downsample = Downsample(widths[i - 1], widths[i]) if i else None
            blocks = [Block(widths[i], heads[i], kernels, rate) for rate in rates[i]]
            stages.append(Stage(downsample, blocks, with_cp))
        self.finish(Stem(in_channels, widths[0]), stages)
