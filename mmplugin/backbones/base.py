"""DenseBackbone: what the three families share."""

import copy
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmplugin.errors import UserError
from mmplugin.layers import BIASES, ConvNorm, checkpoint, freeze, freeze_norms

from .arch import MOST_BLOCKS, MOST_CHANNELS, ArchChecker, hidden_channels


class ArgumentError(UserError, TypeError):
    """An argument that the constructor does not have."""


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
        """Return the feature map of the stage."""
        x = self.downsample(x)
        recompute = self.with_cp and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x) if recompute else block(x)
        return x


class FusesScales:
    """A block whose layer scales can be folded into the layers before them."""

    def fuse_scales(self) -> None:
        """Fold the layer scales and set them to None."""
        raise NotImplementedError


class DenseBackbone(nn.Module):
    """Stem, stages and feature maps.

    A family lists its variants in ``ARCHS``, builds a stem and ``self.num_stages`` stages, and passes them to
    ``finish``. Everything else (outputs, freezing, checks) happens here.

    Args:
        arch: Name of a variant, or a dict with the same keys as a row of ``ARCHS``.
        in_channels: Channels of the image.
        out_indices: Stages whose feature maps are returned, in this order; negative ones count from the end. None
            means all. Stages above the highest one are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: Keep the statistics of all norms as loaded; their scale and shift stay trainable.
        drop_path_rate: Stochastic depth of the last block; None means the default of the arch.
        with_cp: Trade time for memory: save only the input of each block for backward.
        init_cfg: As in OpenMMLab, for example ``dict(type='Pretrained', checkpoint='file.pth')``. Pretrained weights
            are loaded strictly: if one does not fit, training does not start.
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]]
    STRIDES: ClassVar[tuple[int, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # keys of an arch dict that the rows of ``ARCHS`` do not have
    RATIO = 4  # hidden channels of a feed-forward network divided by its width, where the arch does not say
    MIN_STEM = 2  # least width
    MIN_SIZE = 32

    def __new__(cls, *args: Any, **kwargs: Any) -> 'DenseBackbone':
        """Refuse unknown arguments with a message that lists the known ones."""
        known = inspect.signature(cls.__init__).parameters
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ArgumentError(f'{cls.__name__} has no argument {_listed(unknown)}; it takes {_listed([*known][1:])}')
        return super().__new__(cls)

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
    ):
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
        if not isinstance(self.drop_path_rate, int | float) or not 0.0 <= self.drop_path_rate < 1.0:
            raise UserError(f'drop_path_rate is {self.drop_path_rate!r}; allowed: 0 and more, below 1')

    @classmethod
    def _settings(cls, arch: str | dict) -> dict[str, Any]:
        return copy.deepcopy(dict(cls._row(arch)))

    @classmethod
    def _row(cls, arch: str | dict) -> dict[str, Any]:
        """Return a row of ``ARCHS``, or the dict itself after its check."""
        if isinstance(arch, dict):
            cls.check_arch(arch)
            return arch
        if not isinstance(arch, str) or arch not in cls.ARCHS:
            raise UserError(f'{cls.__name__} has no arch {arch!r}; allowed: {_listed(cls.ARCHS)}, or a dict')
        return cls.ARCHS[arch]

    @classmethod
    def check_arch(cls, arch: dict[str, Any]) -> None:
        """Refuse an arch that cannot be built, with one message that lists every problem."""
        required = [key for key in next(iter(cls.ARCHS.values())) if key not in ('drop_path_rate', 'ratios')]
        checker = ArchChecker(cls.__name__, arch, len(cls.STRIDES))
        checker.keys(required, ('ratios', 'hidden', *cls.OPTIONAL, 'drop_path_rate'))
        widths = checker.integers('widths', cls.MIN_STEM, MOST_CHANNELS)
        depths = checker.integers('depths', 0, MOST_BLOCKS)
        checker.hidden(widths, depths)
        cls._check_family(checker, widths, depths)
        rate = arch.get('drop_path_rate', 0.0)
        if not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
            checker.refuse('drop_path_rate', rate, '0 and more, below 1')
        checker.raise_if_any()

    @classmethod
    def _check_family(
        cls, checker: ArchChecker, widths: tuple[int, ...] | None, depths: tuple[int, ...] | None
    ) -> None:
        """Check the keys that only this family has. Widths and depths are None if they are wrong themselves."""
        raise NotImplementedError

    @classmethod
    def explicit(cls, arch: str | dict) -> dict[str, Any]:
        """Return an arch as a dict in which every default is filled in, without ``drop_path_rate``.

        Two archs build the same network if their explicit forms are equal. An explicit form is an arch, too.
        """
        settings = cls._row(arch)
        return dict(
            widths=tuple(map(int, settings['widths'])),
            depths=tuple(map(int, settings['depths'])),
            hidden=hidden_channels(settings, cls.RATIO),
        )

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
        """Refuse a value that is not allowed."""
        if value not in list(allowed):  # a list, because the value may not be hashable
            raise UserError(f'{name} is {value!r}; allowed: {_listed(allowed)}')

    @staticmethod
    def check_bias(attention_bias: str, bias_grid: int | None) -> int:
        """Check both arguments and return the grid of the bias tables."""
        DenseBackbone.check_choice('attention_bias', attention_bias, BIASES)
        if bias_grid is None:
            return BIASES[attention_bias].default_grid
        if not isinstance(bias_grid, int) or bias_grid < 1:
            raise UserError(f'bias_grid is {bias_grid!r}; allowed: a side of 1 or more, in cells of stride 32')
        return bias_grid

    def finish(self, stem: nn.Module, stages: Sequence[nn.Module], out_norms: nn.ModuleDict | None = None) -> None:
        """Register what the family built; the last call in its constructor."""
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.out_norms = nn.ModuleDict() if out_norms is None else out_norms
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of the stages in ``out_indices``, each of size ``ceil(size / stride)``."""
        if min(x.shape[-2:]) < self.MIN_SIZE:
            raise UserError(
                f'{type(self).__name__}: the image is {x.shape[-2]}x{x.shape[-1]} (height x width); '
                f'both sides must be {self.MIN_SIZE} or more: pad or enlarge it'
            )
        # The layout in which CPUs and tensor cores run 1x1 and depthwise convolutions without reordering.
        # Other runtimes choose their own.
        x = self.stem(x if torch.compiler.is_exporting() else x.contiguous(memory_format=torch.channels_last))
        features = {}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                features[i] = self.out_norms[str(i)](x) if str(i) in self.out_norms else x
        return tuple(features[i] for i in self.out_indices)

    def init_weights(self) -> None:
        """Apply ``init_cfg``, as mmengine's ``BaseModule`` does; detectors and segmentors call it before training.

        This class is not a ``BaseModule``, because importing that takes a second.
        """
        if self.is_init or not self.init_cfg:
            return
        if self.init_cfg['type'] == 'Pretrained':
            from mmplugin.convert import load_pretrained  # imports this package itself

            load_pretrained(self, **{key: value for key, value in self.init_cfg.items() if key != 'type'})
        else:
            from mmengine.model import initialize

            initialize(self, self.init_cfg)
        self.is_init = True

    def train(self, mode: bool = True) -> 'DenseBackbone':
        """Set the mode, except for what ``frozen_stages`` and ``norm_eval`` freeze."""
        if mode and self.fused:
            raise UserError(
                f'this {type(self).__name__} is fused: its norms are folded into the convolutions and it cannot train; '
                'build a new one and load its weights'
            )
        super().train(mode)
        self._freeze()
        return self

    def fuse(self) -> 'DenseBackbone':
        """Fold norms and layer scales into convolutions and linear layers permanently.

        The result is equal and faster, but for inference only.
        """
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
        """Return what tells two backbones of a family apart."""
        return f'arch={self.arch!r}, out_indices={self.out_indices}' + (', fused: inference only' if self.fused else '')

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for part in (self.stem, *self.stages[: self.frozen_stages]):
                freeze(part)
        if self.norm_eval:
            freeze_norms(self)
