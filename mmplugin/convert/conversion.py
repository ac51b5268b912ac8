"""The conversion: a function from state dict to state dict that accounts for every tensor."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmplugin.errors import UserError
from mmplugin.text import some

from . import bias_tables, formats, sources
from .classifier import MODULES, head_shapes

# Reasons for which tensors are dropped.
HEAD = 'classification head'
INDICES = 'index tables, computed by the backbone'
IMAGENET = 'ImageNet bias tables, not used by the dense code'
OTHERS = 'neck and heads'


@dataclass
class Result:
    """Converted weights, and a record of the conversion.

    Args:
        state_dict: Weights that ``MODELS.build(backbone)`` loads with ``strict=True``.
        backbone: Config of the backbone: type, arch and the arguments that these weights require.
        origin: Project whose key names the source had.
        head: Classification head, with the keys of ``mmplugin.convert.classifier.Classifier``.
        imagenet_tables: Bias tables that the authors' dense code stores but does not use, with mmplugin's keys.
        others: Neck and heads, with the keys of mmdet 3 and mmseg 1.
        dropped: Number of tensors that the backbone does not have, by reason.
        resized: Number of entries before and after, of each bias table that was enlarged.
        notes: Other remarks for the user.
        config_saved: Whether the file contains the config of the backbone, as files written by mmplugin do.
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
    config_saved: bool = False

    @property
    def family(self) -> str:
        """'v1', 'v2' or 'evit'."""
        return next(f for f, backbone in formats.FAMILIES.items() if backbone.__name__ == self.backbone['type'])


def convert(
    state_dict: Mapping[str, Any], arch: str | dict | None = None, *, ema: bool = False, prefix: str | None = None
) -> Result:
    """Convert weights of any supported format to mmplugin's format.

    Args:
        state_dict: State dict, or a checkpoint that contains one. It is not changed; the result shares its memory.
        arch: Expected variant, which is otherwise recognized. A dict is required for a custom variant in the format of
            another project.
        ema: Convert the moving average of the weights.
        prefix: Convert only keys with this prefix.
    """
    source = sources.unwrap(state_dict, ema, prefix)
    if arch is None and isinstance(source.saved_config.get('arch'), dict):
        known = formats.recognize(source.weights, source.saved_config['arch'], "the arch in the file's own meta")
    else:
        known = formats.recognize(source.weights, arch)
    if known.form.origin == formats.MMPRETRAIN:
        head_keys = [key for key in source.others if key.startswith('head.')]
        source.weights.update({key: source.others.pop(key) for key in head_keys})
    if known.form.origin == formats.MMPLUGIN:
        source.weights = {**source.head, **source.weights}
        known = _with_saved_bias(known, source.saved_config)
    return _Conversion(source, known).run()


def _with_saved_bias(known: formats.Recognized, saved_config: dict[str, Any]) -> formats.Recognized:
    """Take ``attention_bias`` from the saved config, because the shapes of the tables do not determine it."""
    if not saved_config:
        return known
    arguments = {key: value for key, value in known.arguments.items() if key != 'attention_bias'}
    if saved_config.get('attention_bias', 'offset') != 'offset':
        arguments['attention_bias'] = saved_config['attention_bias']
    return replace(known, arguments=arguments)


class _Conversion:
    """State of one conversion, which takes tensors out of a dict until none is left over."""

    def __init__(self, source: sources.Source, known: formats.Recognized):
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
        arguments = {key: value for key, value in known.backbone.items() if key not in ('type', 'arch')}
        own = formats.skeleton(self.family, known.arch, **arguments)
        state_dict = {key: self._take(key, value) for key, value in own.items()}
        imagenet_tables = self._take_imagenet_tables(own)
        head = self._take_head(known.settings['widths'][-1])
        self._drop_index_tables(own)
        self._raise_if_anything_is_wrong()
        self.dropped[OTHERS] += len(source.others)
        notes = [f'weights taken from {source.wrapper!r}'] if source.wrapper in sources.EMA else []
        if source.averaged:
            notes.append("moving average of the weights, which mmengine's EMAHook saves as 'state_dict'")
        if source.ignored:
            notes.append(f'{len(source.ignored)} entries outside the network: {some(source.ignored)}')
        return Result(
            state_dict=state_dict,
            backbone=known.backbone,
            origin=known.form.origin,
            head=head,
            imagenet_tables=imagenet_tables,
            others=sources.rename_others(source.others),
            dropped=+self.dropped,  # without zero counts
            resized=self.resized,
            notes=notes,
            config_saved=bool(source.saved_config),
        )

    def _take(self, key: str, target: Tensor) -> Tensor:
        """Return the tensor for ``key`` in the shape of ``target``, or record the problem and return ``target``."""
        theirs = self.rename(key)
        value = self.left.pop(theirs, None)
        if value is None:
            self.missing.append(theirs)
            return target
        if not torch.is_floating_point(value) and torch.is_floating_point(target):
            self.wrong.append(f'{theirs} is {str(value.dtype).removeprefix("torch.")}, expected floating point')
            return target
        expected = self.known.form.shape(key, target.shape)
        grows = self.family == 'evit' and key.endswith('.table') and bias_tables.can_grow(value, target.shape)
        if value.shape != expected and not grows:  # before any value is read: a wrong shape may claim 2^60 elements
            self.wrong.append(f'{theirs} is {_size(value.shape)}, expected {_size(expected)}')
            return target
        if not _finite(value):
            self.not_finite.append(theirs)
            return target
        if value.shape == expected:
            return value.reshape(target.shape)
        self.resized[key] = (value.shape[1], target.shape[1])
        return bias_tables.grow(value)

    def _take_imagenet_tables(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the unused tables of dense files, which the conversion back needs."""
        tables = dict(self.source.imagenet_tables)
        if not self.known.form.dense:
            return tables
        plain = formats.get(formats.ORIGINAL, self.family).rename(self.known.settings)
        for key in (key for key in own if key.endswith('.table')):
            theirs = plain(key)
            if theirs in self.left:
                tables[key] = self.left.pop(theirs)
            else:
                self.missing.append(theirs)
        self.dropped[IMAGENET] += len(tables)
        return tables

    def _take_head(self, channels: int) -> dict[str, Tensor]:
        """Return the classification head, which has to be complete or absent."""
        own = {self.rename(key): key for key in head_shapes(self.family, channels, 1, True)}
        present = {own[key]: value for key, value in self.left.items() if key in own}
        linear = present.get('head.linear.weight' if self.family == 'evit' else 'head.weight')
        classes = linear.shape[0] if linear is not None and linear.dim() == 2 else 1
        distilled = any(key.startswith('head_dist.') for key in present)
        expected = head_shapes(self.family, channels, classes, distilled)
        if not any(key.startswith(MODULES[1:]) for key in present):
            # If the classifier was removed, the norm before it may still be there.
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

    def _raise_if_anything_is_wrong(self) -> None:
        problems = {
            'unknown': self.left,
            'missing': self.missing,
            'of a wrong shape or type': self.wrong,
            'not finite (NaN or infinity)': self.not_finite,
        }
        if any(problems.values()):
            raise UserError(
                f'recognized as {self.known}, but it does not fit:\n'
                + '\n'.join(_listing(problem, keys) for problem, keys in problems.items() if keys)
                + '\nNothing was converted. Check that the file is complete and contains only one network.'
                + (f' {formats.CUSTOM}' if self.known.form.origin != formats.MMPLUGIN else '')
            )


def _listing(problem: str, keys: Collection[str], most: int = 8) -> str:
    lines = [f'  {len(keys)} {problem}:', *(f'    {key}' for key in list(keys)[:most])]
    return '\n'.join([*lines, f'    ... and {len(keys) - most} more'] if len(keys) > most else lines)


def _finite(value: Tensor) -> bool:
    if not torch.is_floating_point(value):
        return True
    # The sum is fast, and is not finite if any value is not. It may also overflow, hence the second check.
    return bool(torch.isfinite(value.sum(dtype=torch.float32)) or torch.isfinite(value).all())


def _size(shape: torch.Size) -> str:
    return 'x'.join(map(str, shape)) or 'a single number'
