"""Extraction of the backbone's weights from a checkpoint: wrappers, prefixes, other parts of a detector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmplugin.errors import UserError
from mmplugin.text import some

from .key_maps import Rule, renamer

PLAIN = ('state_dict', 'model')
SWAPPED = 'state_dict'
HEAD = 'head.classifier.'  # of mmplugin.classification
EMA = ('model_ema', 'state_dict_ema', 'ema_state_dict')
# Parts of detectors, segmentors and classifiers other than the backbone.
PARTS = (
    'neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.', 'decode_head.', 'auxiliary_head.', 'head.',
    'data_preprocessor.',
)  # fmt: skip


@dataclass
class Source:
    """The parts of a checkpoint.

    Args:
        weights: Tensors of the backbone, and of the head of a classifier, without prefixes.
        others: Tensors of the other parts of a detector or segmentor, with their own keys.
        head: Classification head that an earlier conversion saved.
        imagenet_tables: Bias tables not used by the dense code that an earlier conversion saved.
        saved_config: Config of the backbone that an earlier conversion saved.
        wrapper: Entry of the checkpoint that contained the weights, or ''.
        ignored: Keys of entries that are not weights.
        averaged: Whether mmengine's EMAHook saved the moving average as ``state_dict``.
    """

    weights: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    imagenet_tables: dict[str, Tensor] = field(default_factory=dict)
    saved_config: dict[str, Any] = field(default_factory=dict)
    wrapper: str = ''
    ignored: list[str] = field(default_factory=list)
    averaged: bool = False


def unwrap(checkpoint: Mapping[str, Any], ema: bool = False, prefix: str | None = None) -> Source:
    """Find the weights in a checkpoint.

    Args:
        checkpoint: A state dict, or a dict that contains one.
        ema: Use the moving average of the weights.
        prefix: Use only keys with this prefix, and remove the prefix.
    """
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'the file contains a {type(checkpoint).__name__}; expected a dict of tensors')
    wrapper = _wrapper(checkpoint, ema)
    found = checkpoint[wrapper] if wrapper else checkpoint
    if not isinstance(found, Mapping):
        raise UserError(f'{wrapper!r} is a {type(found).__name__}; expected a dict of tensors')
    weights, ignored = _plain(found)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        others = {key: value for key, value in weights.items() if not key.startswith(prefix)}
        weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        if not weights:
            raise UserError(f'no key has the prefix {prefix!r}; keys of the file: {some(others)}')
        ignored += list(others)
        others = {}
    else:
        weights, others = _split(weights)
    source = Source(weights, others, wrapper=wrapper, ignored=ignored, averaged=_is_swapped(checkpoint))
    if others and all(key.startswith(HEAD) for key in others):
        source.head = {key.removeprefix(HEAD): value for key, value in others.items()}
        source.others = {}
    elif wrapper:
        source.head = dict(_mapping(checkpoint, 'head'))
    if wrapper:
        source.imagenet_tables = dict(_mapping(checkpoint, 'imagenet_tables'))
        source.saved_config = dict(_mapping(_mapping(checkpoint, 'meta'), 'backbone'))
    return source


def rename_others(others: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename necks and heads of mmdet 2, mmseg 0.x and Microsoft's code to those of mmdet 3, mmseg 1 and mmplugin."""
    extra = [int(match[1]) for key in others if (match := re.match(r'neck\.extra_fpn_convs\.(\d+)\.', key))]
    last = max(extra, default=0)
    rules: list[Rule] = [
        (r'^neck\.extra_trans_convs\.', 'neck.upsample_convs.'),
        # Microsoft numbers the output convolutions from the finest map, mmplugin in the order of computation.
        (r'^neck\.extra_fpn_convs\.(\d+)\.', lambda match: f'neck.upsampled_fpn_convs.{last - int(match[1])}.'),
    ]
    if any(key.startswith('rpn_head.') for key in others):
        # In mmdet 1, the heads of the second stage are not inside roi_head.
        rules.append((r'^(bbox_head|mask_head)\.', r'roi_head.\1.'))
    rename = renamer(rules)
    return {rename(key): value for key, value in others.items()}


def _is_swapped(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether mmengine's EMAHook wrote a training checkpoint, with the average as ``state_dict``.

    ``ema_state_dict`` then has the weights that training continues from, by the names of the averaging module.
    """
    raw = _mapping(checkpoint, 'ema_state_dict')
    return 'steps' in raw and 'message_hub' in checkpoint and isinstance(checkpoint.get(SWAPPED), Mapping)


def _wrapper(checkpoint: Mapping[str, Any], ema: bool) -> str:
    if ema and _is_swapped(checkpoint):
        return SWAPPED
    present = [key for key in (EMA if ema else PLAIN) if isinstance(checkpoint.get(key), Mapping)]
    if present:
        return present[0]
    averages = [key for key in EMA if isinstance(checkpoint.get(key), Mapping)]
    if ema:
        raise UserError(f'--ema: the file has no moving average of the weights ({", ".join(EMA)}); omit --ema')
    if averages:
        raise UserError(f'the file has only a moving average of the weights ({averages[0]}); use --ema')
    return ''


def _plain(found: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without the prefixes of wrapper modules, and the keys of ignored entries."""
    unexpected = [key for key, value in found.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if unexpected:
        raise UserError(f'{len(unexpected)} entries are not tensors: {some(unexpected)}; expected tensors by name')
    ignored = ['steps'] if 'steps' in found and any(key.startswith('module.') for key in found) else []
    weights = {key: value for key, value in found.items() if key not in ignored}
    for prefix in ('module.', '_orig_mod.', 'model.'):
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights, ignored


def _split(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the weights into those of the backbone and those of the other parts."""
    if not any(key.startswith('backbone.') for key in weights):
        return weights, {}
    body = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    others = {key: value for key, value in weights.items() if not key.startswith('backbone.')}
    unexpected = [key for key in others if not key.startswith(PARTS)]
    if unexpected:
        raise UserError(
            f'{len(unexpected)} keys belong neither to the backbone nor to another known part of a model: '
            f'{some(unexpected)}; known parts: {", ".join(PARTS)}'
        )
    return body, others


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}
