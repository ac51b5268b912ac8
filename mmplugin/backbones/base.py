"""DenseBackbone: what the three families share."""

import copy
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmplugin.errors import UserError
from mmplugin.layers import BIASES, ConvNorm, checkpoint, freeze, freeze_norms


class ArgumentError(UserError, TypeError):
    """An argument that the constructor does not know."""


def _listed(values: Iterable) -> str:
    return ', '.join(map(str, values))


class Stage(nn.Module):
    """Downsampling, then blocks: one feature map, one level of freezing, one prefix of weight names."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module], with_cp: bool):
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        recompute = self.with_cp and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x) if recompute else block(x)
        return x


class FusesScales:
    """A block whose layer scales can go into the layers before them."""

    def fuse_scales(self) -> None:
        raise NotImplementedError


class DenseBackbone(nn.Module):
    """Stem, stages, feature maps.

    A family names its variants in ``ARCHS``, builds ``self.stem`` and as many stages as ``self.num_stages`` says, and
    hands them to ``self.finish``. Everything else (outputs, freezing, checks) happens here.

    Args:
        arch: Name of a variant, or a dict with the same keys as a row of ``ARCHS``.
        in_channels: Channels of the image.
        out_indices: Stages whose feature maps are returned, in this order; negative ones count from the end. All
            if None. Stages above the highest one are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: Keep the statistics of all norms as loaded; scale and shift still learn.
        drop_path_rate: Stochastic depth of the last block; the arch's own if None.
        with_cp: Trade time for memory: keep only the input of each block for backward.
        init_cfg: As everywhere in OpenMMLab, such as ``dict(type='Pretrained', checkpoint='file.pth')``. Pretrained
            weights are loaded strictly: all of them fit, or training does not start.
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]]
    STRIDES: ClassVar[tuple[int, ...]]
    MIN_SIZE = 32

    def __init__(
        self,
        arch: str | dict,
        in_channels: int,
        out_indices: Sequence[int] | None,
        frozen_stages: int,
        norm_eval: bool,
        drop_path_rate: float | None,
        with_cp: bool,
        init_cfg: dict | None,
        unknown: dict[str, Any],
    ):
        self._refuse(unknown)
        super().__init__()
        self.init_cfg, self.is_init = copy.deepcopy(init_cfg), False
        self.arch, self.settings = arch, self._settings(arch)
        self.in_channels = in_channels
        self.out_indices = self._out_indices(out_indices)
        self.num_stages = max(self.out_indices) + 1
        self.out_channels = tuple(self.settings['widths'][i] for i in self.out_indices)
        self.out_strides = tuple(self.STRIDES[i] for i in self.out_indices)
        stages = len(self.STRIDES)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= stages:
            raise UserError(f'frozen_stages is {frozen_stages!r}; allowed: -1 (nothing), 0 (the stem) to {stages}')
        self.frozen_stages, self.norm_eval, self.with_cp, self.fused = frozen_stages, norm_eval, with_cp, False
        self.drop_path_rate = self.settings.get('drop_path_rate', 0.0) if drop_path_rate is None else drop_path_rate
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise UserError(f'drop_path_rate is {self.drop_path_rate}; allowed: 0 and more, below 1')

    @classmethod
    def _refuse(cls, unknown: dict[str, Any]) -> None:
        if unknown:
            known = [name for name in inspect.signature(cls.__init__).parameters if name not in ('self', 'unknown')]
            raise ArgumentError(f'{cls.__name__} has no argument {_listed(sorted(unknown))}; it takes {_listed(known)}')

    @classmethod
    def _settings(cls, arch: str | dict) -> dict[str, Any]:
        if isinstance(arch, dict):
            keys = set(next(iter(cls.ARCHS.values()))) - {'drop_path_rate'}
            missing, strange = keys - set(arch), set(arch) - keys - {'drop_path_rate'}
            if missing or strange:
                raise UserError(
                    f'{cls.__name__}: arch as a dict lacks [{_listed(sorted(missing))}] and has the unknown keys '
                    f'[{_listed(sorted(strange))}]; it needs {_listed(sorted(keys))}'
                )
            if any(len(arch[key]) != len(cls.STRIDES) for key in ('widths', 'depths')):
                raise UserError(f'{cls.__name__}: widths and depths need {len(cls.STRIDES)} entries each, one a stage')
            return copy.deepcopy(dict(arch))
        if arch not in cls.ARCHS:
            raise UserError(f'{cls.__name__} has no arch {arch!r}; allowed: {_listed(cls.ARCHS)}, or a dict')
        return cls.ARCHS[arch]

    @classmethod
    def _out_indices(cls, out_indices: Sequence[int] | None) -> tuple[int, ...]:
        stages = len(cls.STRIDES)
        given = range(stages) if out_indices is None else out_indices
        allowed = f'allowed: different stages from {-stages} to {stages - 1}, at least one'
        if isinstance(given, int | str) or not all(isinstance(i, int) and -stages <= i < stages for i in given):
            raise UserError(f'out_indices is {out_indices!r}; {allowed}')
        indices = tuple(i % stages for i in given)
        if not indices or len(set(indices)) < len(indices):
            raise UserError(f'out_indices is {out_indices!r}; {allowed}')
        return indices

    @staticmethod
    def check_choice(name: str, value: Any, allowed: Iterable) -> None:
        if value not in allowed:
            raise UserError(f'{name} is {value!r}; allowed: {_listed(allowed)}')

    @staticmethod
    def check_bias(attention_bias: str, bias_grid: int | None) -> int:
        """The grid of the bias tables, after a look at both arguments."""
        DenseBackbone.check_choice('attention_bias', attention_bias, BIASES)
        if bias_grid is None:
            return BIASES[attention_bias].default_grid
        if not isinstance(bias_grid, int) or bias_grid < 1:
            raise UserError(f'bias_grid is {bias_grid!r}; allowed: a side of 1 or more, in cells of stride 32')
        return bias_grid

    def finish(self, stem: nn.Module, stages: Sequence[nn.Module], out_norms: nn.ModuleDict | None = None) -> None:
        """Takes what the family built; called last in its constructor."""
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.out_norms = nn.ModuleDict() if out_norms is None else out_norms
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stages in ``out_indices``, each of ``ceil(size / stride)``."""
        if min(x.shape[-2:]) < self.MIN_SIZE:
            raise UserError(
                f'{type(self).__name__}: the image is {x.shape[-2]}x{x.shape[-1]} (height x width); '
                f'both sides must be {self.MIN_SIZE} or more: pad or enlarge it'
            )
        # The layout in which CPUs and tensor cores run 1x1 and depthwise convolutions without reordering.
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        features = {}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                features[i] = self.out_norms[str(i)](x) if str(i) in self.out_norms else x
        return tuple(features[i] for i in self.out_indices)

    def init_weights(self) -> None:
        """Called by detectors and segmentors before training, as on mmengine's ``BaseModule``.

        This class is no ``BaseModule`` because importing that takes a second.
        """
        if self.is_init or not self.init_cfg:
            return
        if self.init_cfg['type'] == 'Pretrained':
            from mmplugin.convert import load_pretrained

            load_pretrained(self, **{key: value for key, value in self.init_cfg.items() if key != 'type'})
        else:
            from mmengine.model import initialize

            initialize(self, self.init_cfg)
        self.is_init = True

    def train(self, mode: bool = True) -> 'DenseBackbone':
        if mode and self.fused:
            raise UserError(
                f'this {type(self).__name__} is fused: its norms are folded into the convolutions and it cannot train; '
                'build a new one and load its weights'
            )
        super().train(mode)
        self._freeze()
        return self

    def fuse(self) -> 'DenseBackbone':
        """Folds norms and layer scales into convolutions and linear layers, for good: faster, equal, inference only."""
        if not self.fused:
            for module in list(self.modules()):
                if isinstance(module, FusesScales):
                    module.fuse_scales()
            for module in self.modules():
                if isinstance(module, ConvNorm):
                    module.fuse()
            self.fused = True
            self.requires_grad_(False).eval()
        return self

    def extra_repr(self) -> str:
        return f'arch={self.arch!r}, out_indices={self.out_indices}' + (', fused: inference only' if self.fused else '')

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for part in (self.stem, *self.stages[: self.frozen_stages]):
                freeze(part)
        if self.norm_eval:
            freeze_norms(self)
