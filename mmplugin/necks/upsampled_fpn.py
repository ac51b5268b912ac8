"""UpsampledFPN: a feature pyramid with levels that are finer than those of the backbone."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugin.errors import UserError

EXTRA_SOURCES = (False, 'on_input', 'on_lateral', 'on_output')


class Conv(nn.Sequential):
    """A convolution and an optional norm, with the names of mmcv's ``ConvModule``: ``*.conv.*``, ``*.bn.*``."""

    def __init__(self, kind: type[nn.Module], in_channels: int, out_channels: int, norm_cfg: dict | None, **sizes: int):
        super().__init__()
        self.conv = kind(in_channels, out_channels, bias=norm_cfg is None, **sizes)
        if norm_cfg is not None:
            from mmcv.cnn import build_norm_layer

            self.add_module(*build_norm_layer(norm_cfg, out_channels))


class UpsampledFPN(BaseModule):
    """A feature pyramid that is described by the strides of its inputs and outputs.

    Levels of the backbone get a lateral and an output convolution, with the same names and meaning as in mmdet's FPN.
    Finer levels are computed from the finest lateral by transposed convolutions, coarser levels from the coarsest one
    by subsampling, or by strided convolutions if ``add_extra_convs`` names their source.

    The output strides are an argument because anchors and RoI extractors rely on them but cannot check them: with a
    pyramid that is off by one level, training runs without an error and learns nothing.

    Args:
        in_channels: Channels of the backbone's maps.
        in_strides: Strides of the backbone's maps, each twice the previous one.
        out_channels: Channels of every output.
        out_strides: Strides to return, each twice the previous one.
        add_extra_convs: How to compute levels that are coarser than the backbone's: False (subsampling), or the source
            of strided convolutions, one of 'on_input', 'on_lateral', 'on_output'.
        norm_cfg: A norm after every convolution, as in mmdet's FPN; None means biases instead.
        init_cfg: As in OpenMMLab.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int,
        out_strides: Sequence[int],
        add_extra_convs: bool | str = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        if len(in_channels) != len(in_strides):
            raise UserError(f'UpsampledFPN: {len(in_channels)} in_channels, but {len(in_strides)} in_strides')
        _check_ladder('in_strides', in_strides)
        _check_ladder('out_strides', out_strides)
        if out_strides[0] > in_strides[-1] or out_strides[-1] < in_strides[0]:
            raise UserError(
                f'UpsampledFPN: out_strides {list(out_strides)} and in_strides {list(in_strides)} have no level in '
                'common; use the strides of the backbone (backbone.out_strides) for in_strides'
            )
        if add_extra_convs is True:
            add_extra_convs = 'on_input'
        if add_extra_convs not in EXTRA_SOURCES:
            raise UserError(f'UpsampledFPN: add_extra_convs is {add_extra_convs!r}; allowed: {EXTRA_SOURCES}')
        self.in_strides, self.out_strides = tuple(in_strides), tuple(out_strides)
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.add_extra_convs = add_extra_convs

        # the backbone levels that get a lateral: from the finest one that is needed to the coarsest
        self.first = in_strides.index(max(out_strides[0], in_strides[0]))
        used = range(self.first, len(in_strides))
        self.returned = [in_strides[i] for i in used if in_strides[i] in out_strides]

        def conv(channels: int, kind: type[nn.Module] = nn.Conv2d, **sizes: int) -> Conv:
            return Conv(kind, channels, out_channels, norm_cfg, **sizes)

        def output() -> Conv:
            return conv(out_channels, kernel_size=3, padding=1)

        self.lateral_convs = nn.ModuleList(conv(in_channels[i], kernel_size=1) for i in used)
        self.fpn_convs = nn.ModuleList(output() for _ in self.returned)
        self.num_coarser = sum(stride > in_strides[-1] for stride in out_strides)
        if add_extra_convs:
            for i in range(self.num_coarser):
                channels = in_channels[-1] if i == 0 and add_extra_convs == 'on_input' else out_channels
                self.fpn_convs.append(conv(channels, kernel_size=3, stride=2, padding=1))
        num_finer = sum(stride < in_strides[0] for stride in out_strides)
        self.upsample_convs = nn.ModuleList(
            conv(out_channels, nn.ConvTranspose2d, kernel_size=2, stride=2) for _ in range(num_finer)
        )
        self.upsampled_fpn_convs = nn.ModuleList(output() for _ in range(num_finer))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the maps in the order of ``out_strides``."""
        if not torch.compiler.is_exporting():  # comparing symbolic sizes would tie the graph to some of them
            self._check_inputs(inputs)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.first :], strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size, mode='nearest')
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals[: len(self.returned)], strict=False)]

        source = laterals[0]
        for up, conv in zip(self.upsample_convs, self.upsampled_fpn_convs, strict=True):
            source = up(source)
            outs.insert(0, conv(source))

        if self.add_extra_convs and self.num_coarser:
            extra = {'on_input': inputs[-1], 'on_lateral': laterals[-1], 'on_output': outs[-1]}[self.add_extra_convs]
            for conv in self.fpn_convs[len(self.returned) :]:
                extra = conv(extra)
                outs.append(extra)
        else:
            for _ in range(self.num_coarser):
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)

    def _check_inputs(self, inputs: Sequence[Tensor]) -> None:
        shapes = [(x.shape[1], *x.shape[-2:]) for x in inputs]
        halved = all(
            after in (before // 2, (before + 1) // 2)
            for fine, coarse in pairwise(shapes)
            for before, after in zip(fine[1:], coarse[1:], strict=True)
        )
        if tuple(c for c, *_ in shapes) != self.in_channels or not halved:
            raise UserError(
                f'UpsampledFPN expects maps of {list(self.in_channels)} channels at strides {list(self.in_strides)}, '
                f'each half as large as the one before, but got (channels, height, width) {shapes}; '
                "compare the backbone's out_indices with in_channels and in_strides"
            )


def _check_ladder(name: str, strides: Sequence[int]) -> None:
    good = len(strides) > 0 and all(isinstance(s, int) and s > 0 and log2(s).is_integer() for s in strides)
    if not good or any(after != 2 * before for before, after in pairwise(strides)):
        raise UserError(
            f'UpsampledFPN: {name} is {list(strides)}; allowed: powers of two, each twice the one before, '
            'such as [8, 16, 32]'
        )
