"""Removal of channels inside a detector or segmentor: the backbone, and the convolutions of the neck that read it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .pools import Pools
from .subnet import keep_logit_scale_, subnet, without_blocks_of

NECKS = ('FPN', 'UpsampledFPN')  # whose convolutions on the maps of the backbone are known


def knows_neck(model: nn.Module) -> bool:
    """Return whether the widths of the stages can change: the neck's convolutions are known."""
    return type(getattr(model, 'neck', None)).__name__ in NECKS


def readers_of(model: Any) -> dict[str, str]:
    """Return the names of the neck's weights that read the maps of the backbone, and the axes that they read."""
    if not knows_neck(model):
        return {}
    neck, stages = model.neck, model.backbone.out_indices
    first = getattr(neck, 'start_level', getattr(neck, 'first', 0))
    convs = {f'lateral_convs.{i}': stages[first + i] for i in range(len(neck.lateral_convs))}
    outputs = getattr(neck, 'backbone_end_level', len(stages)) - first
    outputs = len(getattr(neck, 'returned', range(outputs)))
    if getattr(neck, 'add_extra_convs', None) == 'on_input' and len(neck.fpn_convs) > outputs:
        last = getattr(neck, 'backbone_end_level', len(stages)) - 1
        convs[f'fpn_convs.{outputs}'] = stages[last]
    names = {name: f'width.{stage}' for name, stage in convs.items()}
    return {f'neck.{name}.{_weight_of(neck.get_submodule(name))}': axis for name, axis in names.items()}


def _weight_of(module: nn.Module) -> str:
    """Return the name of the weight of the only convolution in a module."""
    (name,) = (name for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    return f'{name}.weight' if name else 'weight'


@torch.no_grad()
def narrow_(
    model: Any,
    pools: Pools,
    arch: dict[str, Any],
    kept: Mapping[str, Tensor],
    gone: Collection[tuple[int, int]] = (),
) -> None:
    """Remove channels, then blocks, from a model.

    Args:
        model: Detector or segmentor, changed in place.
        pools: Pools of its backbone as it is.
        arch: The narrower arch, with all blocks.
        kept: For each pool that shrinks, the channels that stay.
        gone: Blocks to remove, each given by stage and block.
    """
    readers = readers_of(model)
    small = subnet(model.backbone, arch, kept)
    keep_logit_scale_(small, model.backbone)
    model.backbone = without_blocks_of(small, gone) if gone else small
    select_inputs_(model, readers, lambda axis: pools.indices(axis, kept))


@torch.no_grad()
def select_inputs_(model: Any, readers: Mapping[str, str], indices_of: Callable[[str], Tensor]) -> None:
    """Select and order the input channels of the neck's convolutions.

    Args:
        model: Detector or segmentor whose backbone was replaced; its neck is changed in place.
        readers: What ``readers_of`` returned before.
        indices_of: The channels of an axis that stay, in their order.
    """
    for key, axis in readers.items():
        conv = model.get_submodule(key.removesuffix('.weight'))
        indices = indices_of(axis).to(conv.weight.device)
        conv.weight = nn.Parameter(conv.weight.index_select(1, indices), conv.weight.requires_grad)
        conv.in_channels = len(indices)
    if readers:
        model.neck.in_channels = type(model.neck.in_channels)(model.backbone.out_channels)
