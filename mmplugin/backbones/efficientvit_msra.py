"""Microsoft's EfficientViT, m0 to m5; MIT's EfficientViT is another network.

Memory Efficient Vision Transformer with Cascaded Group Attention, Liu et al., CVPR 2023,
https://arxiv.org/abs/2305.07027. Written from the paper. The authors' code and weights:
https://github.com/microsoft/Cream/tree/main/EfficientViT (MIT License).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmplugin.layers import (
    ConvNorm,
    DropPath,
    OffsetBias,
    bias_windows,
    cached_constant,
    ceil_div,
    drop_path_rates,
    is_symbolic,
    resize_matrix,
)

from .arch import MOST_CHANNELS, ArchChecker, is_integer, is_listed, whole_product
from .base import DenseBackbone, Stage

WINDOW = 7


class Stem(nn.Sequential):
    """Overlapping patch embedding: four 3x3 convolutions of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        widths = (in_channels, channels // 8, channels // 4, channels // 2, channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            conv = ConvNorm(before, after, 3, 2, bias=False, post_act='relu' if after < channels else None)
            layers += [conv, nn.Identity()]  # the identities keep the numbers in the published weights' names
        super().__init__(*layers[:-1])


class Mlp(nn.Module):
    """Two 1x1 convolutions with ReLU between them."""

    def __init__(self, channels: int, hidden: int, zero_init: bool):
        super().__init__()
        self.pw1 = ConvNorm(channels, hidden, bias=False, post_act='relu')
        self.pw2 = ConvNorm(hidden, channels, bias=False, zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.pw2(self.pw1(x))


class TokenInteraction(ConvNorm):
    """A depthwise 3x3 convolution."""

    def __init__(self, channels: int, zero_init: bool):
        super().__init__(channels, channels, 3, groups=channels, bias=False, zero_init=zero_init)


@cached_constant
def shrink_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the least-squares inverse of enlarging a table from ``size`` to the window: (size, WINDOW)."""
    enlarge = resize_matrix(size, WINDOW, False, torch.device('cpu'), torch.float64)
    return torch.linalg.pinv(enlarge).to(device, dtype)


class WindowBias(OffsetBias):
    """The bias inside one window, and inside a map that is smaller than a window.

    The last stage was pretrained on 4x4 maps; converting its weights enlarges the table to the window's 7x7 (bicubic,
    as the authors do for detection). On a 4x4 map the pretrained table must come back, so shrinking is the inverse of
    enlarging.
    """

    def forward(self, height: int, width: int) -> Tensor:
        """Return the bias (heads, queries, keys) for a map of ``height`` x ``width``, both at most ``WINDOW``."""
        return self._cached(self._matrix, height, width)

    def _offsets(self, height: int, width: int) -> Tensor:
        table = self.table.view(self.heads, WINDOW, WINDOW)
        if not height == width == WINDOW:
            rows, columns = (shrink_matrix(size, table.device, table.dtype) for size in (height, width))
            table = rows @ table @ columns.T
        return self.signed(table)

    def _matrix(self, height: int, width: int) -> Tensor:
        offsets = self._offsets(height, width)
        if torch.compiler.is_exporting():
            return self.rows(offsets, height, width, 1)
        # A full window does not depend on the image size, so even a compiler may see a window of the table.
        full = height == width == WINDOW
        windows = bias_windows(offsets, WINDOW, WINDOW) if full else self.rows(offsets, height, width, 1)
        return windows.flip(3, 4).reshape(self.heads, -1, height * width)


def split_windows(x: Tensor) -> Tensor:
    """Pad a map (B, C, H, W) to whole windows and cut it: (B * rows * columns, C, WINDOW, WINDOW), channels last."""
    batch, channels, height, width = x.shape
    # Ceil-division lets torch.compile prove, for symbolic sizes, that the windows tile the padded map.
    rows, columns = ceil_div(height, WINDOW), ceil_div(width, WINDOW)
    x = F.pad(x, (0, columns * WINDOW - width, 0, rows * WINDOW - height)).permute(0, 2, 3, 1)  # (B, H', W', C)
    x = x.view(batch, rows, WINDOW, columns, WINDOW, channels).transpose(2, 3)  # (B, rows, columns, 7, 7, C)
    return x.reshape(-1, WINDOW, WINDOW, channels).permute(0, 3, 1, 2)


def join_windows(x: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Undo ``split_windows``: (B * rows * columns, C, WINDOW, WINDOW) to (B, C, H, W), channels last."""
    rows, columns = ceil_div(height, WINDOW), ceil_div(width, WINDOW)
    x = x.permute(0, 2, 3, 1).reshape(batch, rows, columns, WINDOW, WINDOW, -1).transpose(2, 3)
    x = x.reshape(batch, rows * WINDOW, columns * WINDOW, -1)  # (B, H', W', C)
    x = x.permute(0, 3, 1, 2)[..., :height, :width]
    if torch.compiler.is_exporting():
        return x
    # contiguous() copies only if there is padding to crop; in a graph that would be a guard on the image size.
    copy = Tensor.clone if torch.compiler.is_compiling() else Tensor.contiguous
    return copy(x, memory_format=torch.channels_last)


class CascadedGroupAttention(nn.Module):
    """Attention in windows of 7x7; a map that fits into one is a window of its own size.

    Each head sees its own share of the channels plus the output of the head before it (Section 3.1). The projection
    comes after the windows are joined, so that it (and its norm, if that is trained) never sees padding.
    """

    def __init__(self, channels: int, heads: int, kernels: Sequence[int], key_dim: int):
        super().__init__()
        self.key_dim, share = key_dim, channels // heads
        self.qkvs = nn.ModuleList(ConvNorm(share, 2 * key_dim + share, bias=False) for _ in range(heads))
        self.dws = nn.ModuleList(
            ConvNorm(key_dim, key_dim, kernel, groups=key_dim, bias=False) for kernel in kernels[:heads]
        )
        self.proj = ConvNorm(channels, channels, bias=False, zero_init=True)
        self.attention_biases = WindowBias(heads, WINDOW)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        batch, _, height, width = x.shape
        # A file for any image size cannot have both branches: it has windows, and says from which size on it is right.
        if not is_symbolic(height, width) and height <= WINDOW and width <= WINDOW:
            x = self.attend(x)
        else:
            x = join_windows(self.attend(split_windows(x)), batch, height, width)
        # In a file, a change in place of a part of a padded map would be two scatters of the whole map.
        return self.proj(F.relu(x) if torch.compiler.is_exporting() else F.relu_(x))

    def attend(self, x: Tensor) -> Tensor:
        """Run the cascade of heads inside each window (B, C, h, w) and concatenate their outputs to the same shape."""
        shares = x.chunk(len(self.qkvs), 1)
        biases = self.attention_biases(*x.shape[-2:]).to(x.dtype)  # (heads, N, N)
        outputs: list[Tensor] = []
        for share, qkv, dw, bias in zip(shares, self.qkvs, self.dws, biases, strict=True):
            share = share + outputs[-1] if outputs else share
            q, k, v = qkv(share).split([self.key_dim, self.key_dim, share.shape[1]], 1)
            q, k, v = (t.flatten(2).transpose(1, 2) for t in (dw(q), k, v))  # (B, N, d)
            attn = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=self.key_dim**-0.5).softmax(-1)  # (B, N, N)
            outputs.append((attn @ v).transpose(1, 2).unflatten(2, share.shape[2:]))
        return torch.cat(outputs, 1)


class SqueezeExcite(nn.Module):
    """Scale channels by a function of their means (Hu et al., 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class PatchMerging(nn.Module):
    """An inverted residual block of stride 2, without the residual."""

    def __init__(self, channels: int, hidden: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvNorm(channels, hidden, bias=False, post_act='relu')
        self.conv2 = ConvNorm(hidden, hidden, 3, 2, groups=hidden, bias=False, post_act='relu')
        self.se = SqueezeExcite(hidden)
        self.conv3 = ConvNorm(hidden, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        return self.conv3(self.se(self.conv2(self.conv1(x))))


class Downsample(nn.Module):
    """The sandwich of a block, with patch merging in place of attention."""

    def __init__(self, channels: int, out_channels: int, hidden: Sequence[int], merge_hidden: int):
        super().__init__()
        self.dw0 = TokenInteraction(channels, zero_init=False)
        self.ffn0 = Mlp(channels, hidden[0], zero_init=False)
        self.merge = PatchMerging(channels, merge_hidden, out_channels)
        self.dw1 = TokenInteraction(out_channels, zero_init=False)
        self.ffn1 = Mlp(out_channels, hidden[1], zero_init=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        x = x + self.dw0(x)
        x = x + self.ffn0(x)
        x = self.merge(x)
        x = x + self.dw1(x)
        return x + self.ffn1(x)


class Block(nn.Module):
    """The sandwich: token interaction and feed-forward network before and after attention."""

    def __init__(self, channels: int, hidden: int, attention: CascadedGroupAttention, drop_path: float):
        super().__init__()
        self.dw0 = TokenInteraction(channels, zero_init=True)
        self.ffn0 = Mlp(channels, hidden, zero_init=True)
        self.mixer = attention
        self.dw1 = TokenInteraction(channels, zero_init=True)
        self.ffn1 = Mlp(channels, hidden, zero_init=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        for layer in (self.dw0, self.ffn0, self.mixer, self.dw1, self.ffn1):
            x = x + self.drop_path(layer(x))
        return x


@MODELS.register_module()
class EfficientViTMSRA(DenseBackbone):
    """Microsoft's EfficientViT m0 to m5: strides 16, 32, 64.

    MIT's EfficientViT, b0 to l3, is another network.

    Args:
        arch: 'm0' to 'm5', or a dict with the keys of a row of ``ARCHS``; ``hidden`` or ``ratios``, ``key_dims``,
            ``merge_ratio`` and ``downsample_hidden`` are optional (docs/backbones.md).
        attention_bias: Only 'offset': the authors' dense code computes the same.

    The other arguments are those of ``DenseBackbone``.
    """

    # kernels: sizes of the depthwise convolutions on the queries, one per head
    ARCHS: ClassVar = {
        'm0': dict(widths=(64, 128, 192), depths=(1, 2, 3), heads=(4, 4, 4), kernels=(5, 5, 5, 5)),
        'm1': dict(widths=(128, 144, 192), depths=(1, 2, 3), heads=(2, 3, 3), kernels=(7, 5, 3, 3)),
        'm2': dict(widths=(128, 192, 224), depths=(1, 2, 3), heads=(4, 3, 2), kernels=(7, 5, 3, 3)),
        'm3': dict(widths=(128, 240, 320), depths=(1, 2, 3), heads=(4, 3, 4), kernels=(5, 5, 5, 5)),
        'm4': dict(widths=(128, 256, 384), depths=(1, 2, 3), heads=(4, 4, 4), kernels=(7, 5, 3, 3)),
        'm5': dict(widths=(192, 288, 384), depths=(1, 3, 4), heads=(3, 3, 4), kernels=(7, 5, 3, 3)),
    }
    STRIDES: ClassVar = (16, 32, 64)
    OPTIONAL: ClassVar = ('key_dims', 'downsample_hidden', 'merge_ratio')
    RATIO = 2
    MIN_STEM = 8  # the stem starts with an eighth of the width
    KEY_DIM, MERGE_RATIO = 16, 4  # of each head; of patch merging: where the arch does not say

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
        self.check_choice('attention_bias', attention_bias, ['offset'])
        arch = self.explicit(self.settings)
        widths, depths, kernels = arch['widths'], arch['depths'], arch['kernels']
        rates = drop_path_rates(self.drop_path_rate, depths)
        stages = []
        for i in range(self.num_stages):
            downsample = None
            if i:
                merge_hidden = round(arch['merge_ratio'][i - 1] * widths[i - 1])
                downsample = Downsample(widths[i - 1], widths[i], arch['downsample_hidden'][i - 1], merge_hidden)
            blocks = []
            for hidden, rate in zip(arch['hidden'][i], rates[i], strict=True):
                attention = CascadedGroupAttention(widths[i], arch['heads'][i], kernels, arch['key_dims'][i])
                blocks.append(Block(widths[i], hidden, attention, rate))
            stages.append(Stage(downsample, blocks, with_cp))
        self.finish(Stem(in_channels, widths[0]), stages)

    @classmethod
    def explicit(cls, arch: str | dict) -> dict:
        """Return an arch as a dict in which every default is filled in.

        ``downsample_hidden``: channels of the feed-forward networks before and after each patch merging.
        """
        result = super().explicit(arch)  # checks it
        settings = cls.ARCHS[arch] if isinstance(arch, str) else arch
        widths = result['widths']
        before_after = settings.get('downsample_hidden') or [[2 * a, 2 * b] for a, b in pairwise(widths)]
        ratios = settings.get('merge_ratio', cls.MERGE_RATIO)
        ratios = ratios if isinstance(ratios, list | tuple) else [ratios] * (len(widths) - 1)
        return dict(
            result,
            heads=tuple(map(int, settings['heads'])),
            kernels=tuple(map(int, settings['kernels'])),
            key_dims=tuple(map(int, settings.get('key_dims') or [cls.KEY_DIM] * len(widths))),
            downsample_hidden=tuple(tuple(map(int, pair)) for pair in before_after),
            merge_ratio=tuple(round(ratio * width) / width for ratio, width in zip(ratios, widths[:-1], strict=True)),
        )

    @classmethod
    def _check_family(
        cls, checker: ArchChecker, widths: tuple[int, ...] | None, depths: tuple[int, ...] | None
    ) -> None:
        heads, kernels = checker.integers('heads', 1, 64), checker.arch['kernels']
        for i, (width, count) in enumerate(zip(widths or (), heads or (), strict=False)):
            if width % count:
                checker.refuse(f'heads, stage {i + 1},', count, f'divisors of its width, {width}')
        if not is_listed(kernels) or not all(is_integer(kernel, 1, 99) and kernel % 2 for kernel in kernels):
            checker.refuse('kernels', kernels, 'a list of odd integers from 1 to 99, one for each head')
        elif heads and len(kernels) < max(heads):
            checker.refuse('kernels', kernels, f'{max(heads)} odd integers, one for each of up to {max(heads)} heads')
        checker.integers('key_dims', 1, 1024)
        cls._check_downsampling(checker, widths)

    @classmethod
    def _check_downsampling(cls, checker: ArchChecker, widths: tuple[int, ...] | None) -> None:
        arch, count = checker.arch, len(cls.STRIDES) - 1
        pairs: Any = arch.get('downsample_hidden')
        ratios = arch.get('merge_ratio', cls.MERGE_RATIO)
        if 'downsample_hidden' in arch and not (
            is_listed(pairs, count)
            and all(is_listed(pair, 2) and all(is_integer(value, 1, MOST_CHANNELS) for value in pair) for pair in pairs)
        ):
            checker.refuse(
                'downsample_hidden', pairs, f'{count} pairs of integers: before and after each patch merging'
            )
        ratios = ratios if isinstance(ratios, list | tuple) else [ratios] * count
        if len(ratios) != count:
            checker.refuse('merge_ratio', arch['merge_ratio'], f'a number, or {count} numbers')
            return
        for i, (ratio, width) in enumerate(zip(ratios, widths or (), strict=False)):
            if (whole_product(ratio, width) or 0) < 4:
                allowed = f'numbers whose product with the width {width} is a whole number of 4 or more'
                checker.refuse(f'merge_ratio, before stage {i + 2},', ratio, allowed)
