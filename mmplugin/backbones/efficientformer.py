"""EfficientFormer (V1): Vision Transformers at MobileNet Speed.

Li et al., NeurIPS 2022, https://arxiv.org/abs/2206.01191. Written from the paper; names of blocks follow it. The
authors' code and weights: https://github.com/snap-research/EfficientFormer (Snap Inc.; see the repository's LICENSE).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmplugin.layers import BIASES, ConvNorm, DropPath, attend, drop_path_rates
from mmplugin.layers.torch_internals import avg_pool3x3_backward

from .arch import MOST_BLOCKS, ArchChecker
from .base import DenseBackbone, FusesScales, Stage

LAYER_SCALE = 1e-5  # initial value, as in the paper's code


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(
            ConvNorm(in_channels, channels // 2, 3, 2, post_act='relu'),
            nn.Identity(),  # keeps the numbers in the weights' names: convolutions at 0 and 2
            ConvNorm(channels // 2, channels, 3, 2, post_act='relu'),
        )


def mean3x3(x: Tensor) -> Tensor:
    """Return the mean of each pixel's neighborhood, without padding."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class PoolingResidual(torch.autograd.Function):
    """``x + scale * (mean3x3(x) - x)`` that saves only ``x`` and ``scale`` for backward."""

    @staticmethod
    def forward(ctx, x, scale):
        """Take ``x`` (B, C, H, W) and ``scale`` (B, C, 1, 1)."""
        ctx.save_for_backward(x, scale)
        return torch.lerp(x, mean3x3(x), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Return the gradients of ``x`` and ``scale``."""
        x, scale = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        scaled_grad = grad * scale
        grad_x = avg_pool3x3_backward(scaled_grad, x).add_(grad).sub_(scaled_grad)
        grad_scale = (grad * (mean3x3(x) - x)).sum((2, 3), keepdim=True) if ctx.needs_input_grad[1] else None
        return grad_x, grad_scale


def pooling_residual(x: Tensor, scale: Tensor) -> Tensor:
    """Return ``x + scale * (mean3x3(x) - x)``, the token mixer of a pool block with its residual, in one pass."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return PoolingResidual.apply(x, scale)
    if torch.compiler.is_exporting():  # lerp would become four operators, one of which ExecuTorch cannot run
        return x + scale * (mean3x3(x) - x)
    return torch.lerp(x, mean3x3(x), scale)


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.fc2 = ConvNorm(hidden, channels, pre_act='gelu')

    def forward(self, x: Tensor, layer_scale: Tensor | None) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.fc2(self.fc1(x), layer_scale, overwrite_input=True)


class LinearMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, with a bias that depends on the offset."""

    heads = 8

    def __init__(self, channels: int, key_dim: int, value_dim: int, attention_bias: str, bias_grid: int):
        super().__init__()
        self.key_dim, self.value_dim = key_dim, value_dim
        self.qkv = nn.Linear(channels, self.heads * (2 * self.key_dim + self.value_dim))
        self.proj = nn.Linear(self.heads * self.value_dim, channels)
        self.attention_biases = BIASES[attention_bias](self.heads, bias_grid)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map (B, height * width, C) to the same shape."""
        # (B, heads, key_dim | key_dim | value_dim, N)
        qkv = self.qkv(x).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], 2)
        x = attend(q, k, v, self.attention_biases, (height, width))
        return self.proj(x.flatten(2).transpose(1, 2))


def scaled(layer_scale: Tensor | None, x: Tensor) -> Tensor:
    """Return ``layer_scale * x``; None stands for a layer scale that is folded into the layer before."""
    return x if layer_scale is None else layer_scale * x


class PoolBlock(nn.Module, FusesScales):
    """MB4D: pooling, then an MLP of 1x1 convolutions, on maps (B, C, H, W)."""

    layer_scale_2: nn.Parameter | None

    def __init__(self, channels: int, hidden: int, drop_path: float):
        super().__init__()
        self.mlp = ConvMlp(channels, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        scale = self.layer_scale_1.to(x.dtype).view(1, -1, 1, 1).expand(len(x), -1, 1, 1)
        x = pooling_residual(x, self.drop_path(scale))  # x + drop_path(scale * (mean3x3(x) - x))
        return x + self.drop_path(self.mlp(x, self.layer_scale_2))

    def fuse_scales(self) -> None:
        """Fold the MLP's layer scale; pooling has no layer before it."""
        self.mlp.fc2.fuse(self.layer_scale_2)
        self.layer_scale_2 = None


class AttentionBlock(nn.Module, FusesScales):
    """MB3D: attention, then a linear MLP, with layer norm, on tokens (B, N, C).

    It takes and returns maps (B, C, H, W); between two such blocks the change of layout is a view.
    """

    layer_scale_1: nn.Parameter | None
    layer_scale_2: nn.Parameter | None

    def __init__(self, channels: int, hidden: int, drop_path: float, attention: Attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.token_mixer = attention
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = LinearMlp(channels, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.drop_path(scaled(self.layer_scale_1, self.token_mixer(self.norm1(x), height, width)))
        x = x + self.drop_path(scaled(self.layer_scale_2, self.mlp(self.norm2(x))))
        return x.transpose(1, 2).unflatten(2, (height, width))

    @torch.no_grad()
    def fuse_scales(self) -> None:
        """Fold both layer scales into the linear layers before them."""
        for linear, scale in ((self.token_mixer.proj, self.layer_scale_1), (self.mlp.fc2, self.layer_scale_2)):
            if scale is not None:
                linear.weight.mul_(scale.view(-1, 1))
                linear.bias.mul_(scale)
        self.layer_scale_1 = self.layer_scale_2 = None


@MODELS.register_module()
class EfficientFormer(DenseBackbone):
    """EfficientFormer l1, l3, l7: strides 4, 8, 16, 32.

    Args:
        arch: 'l1', 'l3', 'l7', or a dict with the keys of a row of ``ARCHS``; ``hidden`` or ``ratios``,
            ``key_dim`` and ``value_dim`` are optional (docs/backbones.md).
        attention_bias: 'offset' resizes the pretrained table to the map; 'upstream' is the authors' dense computation.
        bias_grid: Side of the stride-32 map that the bias tables were trained at: 7 (224 px) by default; with
            'upstream' 25, as in the authors' COCO checkpoints (16 in those for ADE20K).
        out_norm: A ``GroupNorm(1, C)`` on every feature map, as in the authors' dense code.

    The other arguments are those of ``DenseBackbone``.
    """

    ARCHS: ClassVar = {
        'l1': dict(widths=(48, 96, 224, 448), depths=(3, 2, 6, 4), attention_blocks=1),
        'l3': dict(widths=(64, 128, 320, 512), depths=(4, 4, 12, 6), attention_blocks=4),
        'l7': dict(widths=(96, 192, 384, 768), depths=(6, 6, 18, 8), attention_blocks=8),
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
        out_norm: bool = False,
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
        bias_grid = self.check_bias(attention_bias, bias_grid)
        arch = self.explicit(self.settings)
        widths, depths = arch['widths'], arch['depths']
        rates = drop_path_rates(self.drop_path_rate, depths)
        first_attention = depths[-1] - arch['attention_blocks']
        stages = []
        for i in range(self.num_stages):
            blocks: list[nn.Module] = []
            for j, (hidden, rate) in enumerate(zip(arch['hidden'][i], rates[i], strict=True)):
                if i == len(widths) - 1 and j >= first_attention:
                    attention = Attention(widths[i], arch['key_dim'], arch['value_dim'], attention_bias, bias_grid)
                    blocks.append(AttentionBlock(widths[i], hidden, rate, attention))
                else:
                    blocks.append(PoolBlock(widths[i], hidden, rate))
            stages.append(Stage(ConvNorm(widths[i - 1], widths[i], 3, 2) if i else None, blocks, with_cp))
        norms = {str(i): nn.GroupNorm(1, widths[i]) for i in self.out_indices} if out_norm else {}
        self.finish(Stem(in_channels, widths[0]), stages, nn.ModuleDict(norms))

    @classmethod
    def explicit(cls, arch: str | dict) -> dict:
        """Return an arch as a dict in which every default is filled in."""
        result = super().explicit(arch)  # checks it
        settings = cls.ARCHS[arch] if isinstance(arch, str) else arch
        return dict(
            result,
            attention_blocks=int(settings['attention_blocks']),
            key_dim=int(settings.get('key_dim', cls.KEY_DIM)),
            value_dim=int(settings.get('value_dim', cls.VALUE_DIM)),
        )

    @classmethod
    def _check_family(
        cls, checker: ArchChecker, widths: tuple[int, ...] | None, depths: tuple[int, ...] | None
    ) -> None:
        checker.integer('attention_blocks', 0, depths[-1] if depths else MOST_BLOCKS)
        for key in ('key_dim', 'value_dim'):
            checker.integer(key, 1, 1024)
