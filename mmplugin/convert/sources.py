"""What surrounds the weights in a file: wrappers, prefixes, the rest of a detector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmplugin.errors import UserError

PLAIN = ('state_dict', 'model')
EMA = ('model_ema', 'state_dict_ema', 'ema_state_dict')
# Parts of detectors, segmentors and classifiers, beside the backbone.
PARTS = (
    'neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.', 'decode_head.', 'auxiliary_head.', 'head.',
    'data_preprocessor.',
)  # fmt: skip


@dataclass
class Source:
    """The tensors of a file, sorted.

    Args:
        weights: Of the backbone (and the head of a classifier), without prefixes.
        others: Of the other parts of a detector, under their own names.
        head: Of a classifier, kept by an earlier conversion.
        imagenet_tables: Bias tables that dense code ignores, kept by an earlier conversion.
        hint: The backbone's config, as an earlier conversion wrote it.
        wrapper: Where in the file the weights were.
        ignored: Entries that are no weights.
    """

    weights: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    imagenet_tables: dict[str, Tensor] = field(default_factory=dict)
    hint: dict[str, Any] = field(default_factory=dict)
    wrapper: str = ''
    ignored: list[str] = field(default_factory=list)


def unwrap(checkpoint: Mapping[str, Any], ema: bool = False, prefix: str | None = None) -> Source:
    """Finds the weights in what a file held.

    Args:
        checkpoint: A state dict, or a dict that has one.
        ema: Take the moving average of the weights instead of the weights.
        prefix: Take only names that start so, and cut it off.
    """
    if not isinstance(checkpoint, Mapping):
        raise UserError(f'the file holds a {type(checkpoint).__name__}; expected a dict of tensors')
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
            raise UserError(f'no name starts with the prefix {prefix!r}; names here are {_some(others)}')
        ignored += list(others)
        others = {}
    else:
        weights, others = _split(weights)
    source = Source(weights, others, wrapper=wrapper, ignored=ignored)
    if wrapper:
        source.head = dict(_mapping(checkpoint, 'head'))
        source.imagenet_tables = dict(_mapping(checkpoint, 'imagenet_tables'))
        source.hint = dict(_mapping(_mapping(checkpoint, 'meta'), 'backbone'))
    return source


def rename_others(others: dict[str, Tensor]) -> dict[str, Tensor]:
    """Necks and heads of mmdet 2, mmseg 0.x and Microsoft's pyramid in the names of mmdet 3, mmseg 1 and ours."""
    extra = [int(match[1]) for key in others if (match := re.match(r'neck\.extra_fpn_convs\.(\d+)\.', key))]
    last = max(extra, default=0)
    rules = [
        # mmdet 1 had the second stage's heads at the top.
        (r'^(bbox_head|mask_head)\.', r'roi_head.\1.') if any(key.startswith('rpn_head.') for key in others) else None,
        (r'^neck\.extra_trans_convs\.', lambda match: 'neck.upsample_convs.'),
        # Microsoft counts its output convolutions from the finest map, we count in the order of making them.
        (r'^neck\.extra_fpn_convs\.(\d+)\.', lambda match: f'neck.upsampled_fpn_convs.{last - int(match[1])}.'),
    ]
    renamed = {}
    for key, value in others.items():
        for rule in filter(None, rules):
            key = re.sub(*rule, key)
        renamed[key] = value
    return renamed


def _wrapper(checkpoint: Mapping[str, Any], ema: bool) -> str:
    here = [key for key in (EMA if ema else PLAIN) if isinstance(checkpoint.get(key), Mapping)]
    if here:
        return here[0]
    averages = [key for key in EMA if isinstance(checkpoint.get(key), Mapping)]
    if ema:
        raise UserError(f'--ema: the file has no moving average of its weights ({", ".join(EMA)}); leave --ema out')
    if averages:
        raise UserError(f'the file has only a moving average of the weights ({averages[0]}); convert it with --ema')
    return ''


def _plain(found: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without the prefixes of wrappers in memory (DistributedDataParallel, EMA)."""
    strange = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f'{len(strange)} entries are no tensors: {_some(strange)}; expected a dict of tensors')
    ignored = ['steps'] if 'steps' in found and any(key.startswith('module.') for key in found) else []
    weights = {key: value for key, value in found.items() if key not in ignored}
    for prefix in ('module.', '_orig_mod.', 'model.'):
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights, ignored


def _split(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone, and the other parts of a detector."""
    if not any(key.startswith('backbone.') for key in weights):
        return weights, {}
    body = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    others = {key: value for key, value in weights.items() if not key.startswith('backbone.')}
    strange = [key for key in others if not key.startswith(PARTS)]
    if strange:
        raise UserError(
            f'{len(strange)} names belong neither to the backbone nor to a part of a detector or segmentor: '
            f'{_some(strange)}; known parts are {", ".join(PARTS)}'
        )
    return body, others


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _some(keys: list[str] | dict[str, Any]) -> str:
    shown = ', '.join(list(keys)[:4])
    return f'{shown}, ...' if len(keys) > 4 else shown
