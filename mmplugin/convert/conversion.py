"""The conversion: a pure function from dict to dict, strict in both directions."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmplugin.errors import UserError

from . import bias_tables, formats, sources
from .classifier import MODULES, head_shapes

HEAD, INDICES, IMAGENET, OTHERS = (
    'classification head',
    'index tables, derived',
    'ImageNet bias tables, unused by the dense code',
    'neck and heads',
)


@dataclass
class Result:
    """Converted weights, and how they came about.

    Args:
        state_dict: Fits ``MODELS.build(backbone)`` with ``strict=True``.
        backbone: The backbone's config: type, arch and the arguments that these weights need.
        origin: The project whose names the source had.
        head: The classification head, in the names of :class:`mmplugin.convert.classifier.Classifier`.
        imagenet_tables: Bias tables that the authors' dense code stores and ignores, by the names of ours.
        others: Neck and heads, in the names of mmdet 3 and mmseg 1.
        dropped: What the backbone does not take, counted by reason.
        resized: Bias tables that were enlarged: name, sizes before and after.
        notes: What else a person should know.
        noted: Whether the file itself says how its bias tables are to be used.
    """

    state_dict: dict[str, Tensor]
    backbone: dict[str, Any]
    origin: str
    head: dict[str, Tensor] = field(default_factory=dict)
    imagenet_tables: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    dropped: Counter = field(default_factory=Counter)
    resized: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    noted: bool = False

    @property
    def family(self) -> str:
        return next(f for f, backbone in formats.FAMILIES.items() if backbone.__name__ == self.backbone['type'])


def convert(
    state_dict: Mapping[str, Any], arch: str | dict | None = None, *, ema: bool = False, prefix: str | None = None
) -> Result:
    """Converts weights of any known format to the names of this package.

    Args:
        state_dict: Tensors by name, or a checkpoint that holds them. Left as it is; the result shares its memory.
        arch: Confirms the variant that was recognised; a dict for one that is none of the thirteen.
        ema: Take the moving average of the weights.
        prefix: Take only names that start so.
    """
    source = sources.unwrap(state_dict, ema, prefix)
    if arch is None and isinstance(source.hint.get('arch'), dict):
        arch = source.hint['arch']
    known = formats.recognise(source.weights, arch)
    if known.form.origin == formats.MMPRETRAIN:
        of_head = [key for key in source.others if key.startswith('head.')]
        source.weights.update({key: source.others.pop(key) for key in of_head})
    if known.form.origin == formats.OURS:
        source.weights = {**source.head, **source.weights}
        known = _settle_bias(known, source.hint)
    return _Conversion(source, known).run()


def _settle_bias(known: formats.Recognised, hint: dict[str, Any]) -> formats.Recognised:
    """In our own files, how a table is to be used is written beside it: its shape does not tell."""
    if not hint:
        return known
    arguments = {key: value for key, value in known.arguments.items() if key != 'attention_bias'}
    if hint.get('attention_bias', 'offset') != 'offset':
        arguments['attention_bias'] = hint['attention_bias']
    return formats.Recognised(known.form, known.arch, arguments, known.stages)


class _Conversion:
    """One run: takes tensors out of a dict until nothing is left over."""

    def __init__(self, source: sources.Source, known: formats.Recognised):
        self.source, self.known = source, known
        self.family, self.rename = known.form.family, known.rename
        self.left = dict(source.weights)
        self.missing: list[str] = []
        self.wrong: list[str] = []
        self.not_finite: list[str] = []
        self.dropped: Counter = Counter()
        self.resized: dict[str, tuple[int, int]] = {}

    def run(self) -> Result:
        known, source = self.known, self.source
        own = formats.skeleton(self.family, known.arch, **_without_type(known.backbone))
        state_dict = {key: self._take(key, value) for key, value in own.items()}
        kept_tables = self._imagenet_tables(own)
        head = self._head(known.settings['widths'][-1])
        self._drop_index_tables(own)
        self._complain()
        self.dropped[OTHERS] += len(source.others)
        notes = [f'weights taken from {source.wrapper!r}'] if source.wrapper in sources.EMA else []
        if source.ignored:
            notes.append(f'{len(source.ignored)} entries outside the network: {", ".join(source.ignored[:3])}')
        return Result(
            state_dict,
            known.backbone,
            known.form.origin,
            head,
            kept_tables,
            sources.rename_others(source.others),
            +self.dropped,
            self.resized,
            notes,
            bool(source.hint),
        )

    def _take(self, key: str, target: Tensor) -> Tensor | None:
        """Our tensor ``key`` out of the file, in our shape; None with a remark where that fails."""
        theirs = self.rename(key)
        value = self.left.pop(theirs, None)
        if value is None:
            self.missing.append(theirs)
            return None
        if not torch.is_floating_point(value) and torch.is_floating_point(target):
            self.wrong.append(f'{theirs} is {str(value.dtype).removeprefix("torch.")}, expected floating point')
            return None
        if not _finite(value):
            self.not_finite.append(theirs)
            return None
        expected = self.known.form.shape(key, target.shape)
        if value.shape == expected:
            return value.reshape(target.shape)
        if self.family == 'evit' and key.endswith('.table') and bias_tables.can_grow(value, target.shape):
            self.resized[key] = (value.shape[1], target.shape[1])
            return bias_tables.grow(value)
        self.wrong.append(f'{theirs} is {_size(value.shape)}, expected {_size(expected)}')
        return None

    def _imagenet_tables(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tables that dense files carry along: kept, because the way back needs them."""
        kept = dict(self.source.imagenet_tables)
        if not self.known.form.dense:
            return kept
        plain = formats.get(formats.ORIGINAL, self.family).rename(self.known.settings)
        for key in (key for key in own if key.endswith('.table')):
            theirs = plain(key)
            if theirs in self.left:
                kept[key] = self.left.pop(theirs)
            else:
                self.missing.append(theirs)
        self.dropped[IMAGENET] += len(kept)
        return kept

    def _head(self, channels: int) -> dict[str, Tensor]:
        """The classification head, all of it or nothing."""
        ours = {self.rename(key): key for key in head_shapes(self.family, channels, 1, True)}
        present = {ours[key]: value for key, value in self.left.items() if key in ours}
        linear = present.get('head.linear.weight' if self.family == 'evit' else 'head.weight')
        classes = linear.shape[0] if linear is not None and linear.dim() == 2 else 1
        distilled = any(key.startswith('head_dist.') for key in present)
        expected = head_shapes(self.family, channels, classes, distilled)
        if not any(key.startswith(MODULES[1:]) for key in present):
            # A network whose last layer was taken off may still have the norm before it.
            expected = {key: value for key, value in expected.items() if key.startswith(MODULES[0])} if present else {}
        head = {key: self._take(key, value) for key, value in expected.items()}
        self.dropped[HEAD] += len(head)
        return head

    def _drop_index_tables(self, own: Mapping[str, Tensor]) -> None:
        for key in (key for key in own if key.endswith('.table')):
            module = self.rename(key).removesuffix('_seg').removesuffix('attention_biases')
            for suffix in ('attention_bias_idxs', 'attention_bias_idxs_seg'):
                if self.left.pop(module + suffix, None) is not None:
                    self.dropped[INDICES] += 1

    def _complain(self) -> None:
        problems = [
            _listing('unknown', self.left),
            _listing('missing', self.missing),
            _listing('of a wrong shape or type', self.wrong),
            _listing('not finite (NaN or infinity)', self.not_finite),
        ]
        if any(problems):
            raise UserError(
                f'recognised as {self.known}, but it does not fit:\n'
                + '\n'.join(filter(None, problems))
                + '\nNothing was converted. Is the file complete, and of one network only?'
            )


def _listing(what: str, keys: Iterable[str], most: int = 8) -> str:
    keys = list(keys)
    if not keys:
        return ''
    lines = [f'  {len(keys)} {what}:', *(f'    {key}' for key in keys[:most])]
    return '\n'.join([*lines, f'    ... and {len(keys) - most} more'] if len(keys) > most else lines)


def _finite(value: Tensor) -> bool:
    if not torch.is_floating_point(value):
        return True
    # A sum is one quick pass, and NaN or infinity in any place show in it; only then look closer.
    return bool(torch.isfinite(value.sum(dtype=torch.float32)) or torch.isfinite(value).all())


def _size(shape: torch.Size) -> str:
    return 'x'.join(map(str, shape)) or 'a single number'


def _without_type(backbone: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in backbone.items() if key not in ('type', 'arch')}


