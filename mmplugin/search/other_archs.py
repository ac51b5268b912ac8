"""The user's detector or segmentor with another backbone."""

import argparse
import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmplugin.backbones import FAMILIES, DenseBackbone
from mmplugin.benchmark.sizes import ARCHS
from mmplugin.engine.initial_weights import NONE, set_weights_
from mmplugin.errors import UserError

START = 'start'  # name of a network that is none of the published ones
UPSAMPLED_ARGUMENTS = ('in_channels', 'out_channels', 'add_extra_convs', 'norm_cfg', 'init_cfg')


class DoesNotFit(UserError):
    """A model that works with its own backbone only."""


def class_name(part: Mapping[str, Any]) -> str:
    """Return the name of the class of a part of a config, without scope."""
    kind = part.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def family_of(backbone: Mapping[str, Any]) -> str:
    """Return the family of a backbone: ``v1``, ``v2`` or ``evit``."""
    name = class_name(backbone)
    families = {cls.__name__: family for family, cls in FAMILIES.items()}
    if name not in families:
        raise UserError(
            f'the backbone of this config is {name}; allowed are {", ".join(families)}: set model.backbone.type'
        )
    return families[name]


def published_name(backbone: Mapping[str, Any]) -> str:
    """Return the name of the published network that a backbone is, such as ``v2_s0``, or ``start`` for any other."""
    family = family_of(backbone)
    cls, arch = FAMILIES[family], backbone['arch']
    same = [name for name in cls.ARCHS if name == arch or (isinstance(arch, dict) and _equal(cls, name, arch))]
    return f'{family}_{same[0]}' if same else START


def _equal(cls: type[DenseBackbone], name: str, arch: dict) -> bool:
    return _comparable(cls.explicit(name)) == _comparable(cls.explicit(arch))


def _comparable(arch: Mapping[str, Any]) -> dict[str, Any]:
    def listed(value: Any) -> Any:
        return [listed(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: listed(value) for key, value in arch.items() if key != 'drop_path_rate'}


def with_arch(cfg: Config, name: str) -> Config:
    """Return a copy of a config with another published backbone, whose neck reads the new maps.

    The pyramid keeps its strides and channels, so that the heads stay as they are.

    Args:
        cfg: The config of a detector or segmentor with a backbone of this package.
        name: One of the published networks, such as ``v2_s1``.

    Raises:
        DoesNotFit: If the neck is not one that can be adapted.
    """
    cls, arch = ARCHS[name]
    old = cfg.model.backbone
    old_cls = FAMILIES[family_of(old)]
    backbone = dict(type=cls.__name__, arch=arch, in_channels=old.get('in_channels', 3))
    if cls is old_cls:
        backbone = {**old, 'arch': arch, 'init_cfg': None}
    elif cls.STRIDES == old_cls.STRIDES and old.get('out_indices') is not None:
        backbone['out_indices'] = old['out_indices']
    if name.startswith('v1_') and cls is not old_cls:
        backbone['out_norm'] = True  # as in the configs of this package
    new = copy.deepcopy(cfg)
    new.model.backbone = backbone
    _set_neck_(new.model, _maps(old), _maps(backbone))
    return new


def _maps(backbone: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return channels and strides of the maps that a backbone returns."""
    cls = FAMILIES[family_of(backbone)]
    widths, stages = cls.explicit(backbone['arch'])['widths'], range(len(cls.STRIDES))
    indices = stages if backbone.get('out_indices') is None else backbone['out_indices']
    return [widths[i] for i in indices], [cls.STRIDES[i] for i in indices]


def _set_neck_(model: Any, old: tuple[list[int], list[int]], new: tuple[list[int], list[int]]) -> None:
    if old == new:
        return
    first = model.get('neck')
    neck = first[0] if isinstance(first, list) and first else first
    kind = class_name(neck or {})
    (channels, strides), old_strides = new, old[1]
    if kind == 'UpsampledFPN':
        neck.update(in_channels=channels, in_strides=strides)
    elif kind == 'FPN' and strides == old_strides:
        neck.in_channels = channels
    elif kind == 'FPN':
        kept = {key: neck[key] for key in UPSAMPLED_ARGUMENTS if key in neck}
        pyramid = _fpn_strides(neck, old_strides)
        neck.clear()
        neck.update(kept, type='UpsampledFPN', in_channels=channels, in_strides=strides, out_strides=pyramid)
    else:
        raise DoesNotFit(
            f'the neck of this config is {kind or "missing"}, and only FPN and UpsampledFPN can be adapted to other '
            'backbones; --of backbone ranks the backbones alone'
        )


def _fpn_strides(neck: Mapping[str, Any], strides: list[int]) -> list[int]:
    """Return the strides of the outputs of mmdet's or mmseg's FPN."""
    start, end = neck.get('start_level', 0), neck.get('end_level', -1)
    levels = strides[start:] if end in (-1, len(strides) - 1) else strides[start : end + 1]
    return levels + [levels[-1] * 2**i for i in range(1, neck['num_outs'] - len(levels) + 1)]


def start_from(cfg: Config, options: argparse.Namespace) -> Config:
    """Return a copy of a config with the network that ``--from`` and ``--grow`` name.

    Its backbone starts from random weights, unless ``--weights`` or a checkpoint give others.
    """
    backbone = cfg.model.backbone
    family, weights = family_of(backbone), backbone.get('init_cfg')
    cls = FAMILIES[family]
    if options.start:
        if options.start not in cls.ARCHS:
            raise UserError(f'--from {options.start}: allowed are {", ".join(cls.ARCHS)}')
        cfg = with_arch(cfg, f'{family}_{options.start}')
    else:
        cfg = copy.deepcopy(cfg)
    if options.grow:
        if family != 'v2':
            raise UserError('--grow is for configs of v2: other families have no attention to add; use --from')
        cfg.model.backbone.arch = grown(cfg.model.backbone['arch'])
    cfg.model.backbone.init_cfg = weights if options.weights else None
    if not options.weights and not options.checkpoint:
        set_weights_(cfg, NONE)
    return cfg


def grown(arch: str | dict) -> dict[str, Any]:
    """Return an arch of v2 with attention in all blocks of stages 3 and 4, and an expansion of 4 in all blocks."""
    explicit = FAMILIES['v2'].explicit(arch)
    depths, widths = explicit['depths'], explicit['widths']
    hidden = tuple((4 * width,) * depth for width, depth in zip(widths, depths, strict=True))
    return dict(explicit, hidden=hidden, attention_blocks=depths[2:])
