"""A backbone that runs as any of its sub-networks: the supernet of the searches.

The supernet is the ordinary backbone. A sub-network runs on slices of its weights, through an ordinary backbone of the
smaller arch that has no weights of its own. Slimmable networks (Yu et al., ICLR 2019) have norm statistics for every
width; here a sub-network has statistics of its own, computed when it is evaluated (Yu and Huang, ICCV 2019), because
they also depend on the sizes of all layers before.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmplugin.backbones import DenseBackbone
from mmplugin.errors import UserError

from .pools import Pools
from .slices import Blocks, Slices, take
from .subnet import arguments_of, family_of

MOST_SKELETONS = 128  # that are kept; they have no weights, but building one takes 30 ms


class Skeleton:
    """A sub-network without weights, and where its weights lie in the large network."""

    def __init__(self, backbone: DenseBackbone, pools: Pools, arch: dict[str, Any], blocks: Blocks | None):
        slices = Slices(pools, arch, blocks)
        with torch.device('meta'):
            self.module: DenseBackbone = type(backbone)(arch, **arguments_of(backbone))
        own = backbone.state_dict()
        sources = {key: slices.source(key) for key in self.module.state_dict()}
        self.entries = {key: (source, slices.selections(source, own[source].shape)) for key, source in sources.items()}
        self.buffers = {name for name, _ in self.module.named_buffers()}

    def weights(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the slices of the large network's tensors. Buffers are copies."""
        found = {key: take(own[source], selections) for key, (source, selections) in self.entries.items()}
        return found | {key: found[key].clone() for key in self.buffers}

    def training_norms(self) -> dict[str, _BatchNorm]:
        """Return the norms whose statistics change in training, by name."""
        return {
            name: module
            for name, module in self.module.named_modules()
            if isinstance(module, _BatchNorm) and module.training
        }


class ElasticBackbone(nn.Module):
    """Takes the place of a backbone in a detector or segmentor, and runs the sub-network that is selected.

    Maps are padded with zero channels to the widths of the large network: whatever reads them by a convolution computes
    what a convolution without these channels computes. Names of weights are those of the backbone itself.

    Args:
        backbone: The large network. Weights and statistics stay there; with no selection, it runs itself.
    """

    def __init__(self, backbone: DenseBackbone):
        super().__init__()
        if backbone.with_cp:
            raise UserError(
                'with_cp is True: a sub-network cannot run again in backward; set model.backbone.with_cp=False'
            )
        self.stem, self.stages, self.out_norms = backbone.stem, backbone.stages, backbone.out_norms
        self.__dict__['large'] = backbone  # no child, because its children are already
        self.pools = Pools(family_of(backbone), backbone.settings)
        self._skeletons: OrderedDict[str, Skeleton] = OrderedDict()
        self._selected: Skeleton | None = None
        self._own_buffers: dict[str, Tensor] | None = None
        self._momenta: dict[_BatchNorm, float | None] = {}

    @property
    def backbone(self) -> DenseBackbone:
        """The large network."""
        return self.__dict__['large']

    def select(self, arch: str | dict | None, blocks: Blocks | None = None) -> None:
        """Choose what runs from now on.

        Args:
            arch: Arch of a sub-network; None for the large network itself.
            blocks: For each stage, the blocks of the large network that it has; see ``subnet``.
        """
        self.forget_statistics()
        self._selected = None
        if arch is not None:
            explicit = self.backbone.explicit(arch)
            key = repr((sorted(explicit.items()), blocks and [list(of_stage) for of_stage in blocks]))
            if key not in self._skeletons:
                self._skeletons[key] = Skeleton(self.backbone, self.pools, explicit, blocks)
                if len(self._skeletons) > MOST_SKELETONS:
                    self._skeletons.popitem(last=False)
            self._skeletons.move_to_end(key)
            self._selected = self._skeletons[key]
            self._selected.module.train(self.training)

    @torch.no_grad()
    def start_statistics(self) -> None:
        """Let the selected sub-network compute norm statistics of its own: means over the next batches in training."""
        self.forget_statistics()
        assert self._selected is not None
        buffers = self._selected.weights(self._tensors())
        self._own_buffers = {name: buffers[name] for name in self._selected.buffers}
        for name, norm in self._selected.training_norms().items():
            self._momenta[norm] = norm.momentum
            norm.momentum = None  # a cumulative average
            self._own_buffers[f'{name}.running_mean'].zero_()
            self._own_buffers[f'{name}.running_var'].fill_(1)
            self._own_buffers[f'{name}.num_batches_tracked'].zero_()

    def forget_statistics(self) -> None:
        """Return to slices of the large network's norm statistics."""
        for norm, momentum in self._momenta.items():
            norm.momentum = momentum
        self._momenta, self._own_buffers = {}, None

    def statistics(self) -> dict[str, Tensor]:
        """Return the statistics that the selected sub-network has computed, by the names of its own buffers."""
        return dict(self._own_buffers or {})

    def train(self, mode: bool = True) -> 'ElasticBackbone':
        """Set the mode, except for what the backbone freezes."""
        self.training = mode
        self.backbone.train(mode)
        if self._selected:
            self._selected.module.train(mode)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the selected sub-network, with the channels of the large one."""
        if self._selected is None:
            return self.backbone(x)
        weights = self._selected.weights(self._tensors()) | (self._own_buffers or {})
        maps = functional_call(self._selected.module, weights, (x,))
        widths = self.backbone.out_channels
        return tuple(
            F.pad(y, (0, 0, 0, 0, 0, width - y.shape[1])) if y.shape[1] < width else y
            for y, width in zip(maps, widths, strict=True)
        )

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.backbone.named_parameters()) | dict(self.backbone.named_buffers())
