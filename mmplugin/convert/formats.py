"""Recognition of format and variant of a file, from the key maps and the shapes of mmplugin's own weights."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from operator import mul
from typing import Any

import torch
from torch import Tensor

from mmplugin.backbones import FAMILIES
from mmplugin.backbones.arch import arch_name
from mmplugin.errors import UserError
from mmplugin.text import some

from . import arch_of, key_maps


@dataclass(frozen=True)
class Format:
    """How one project stores the weights of one family.

    Args:
        origin: Name of the project.
        family: 'v1', 'v2' or 'evit'.
        rules: Function that returns the key map for the settings of an arch.
        column_scales: Whether layer scales have shape (C, 1, 1) instead of (C,).
        index_tables: Whether index tables (``attention_bias_idxs``) are stored in addition to the bias tables.
        dense: Whether the bias tables are those of the authors' dense code.
    """

    origin: str
    family: str
    rules: Callable[[dict], list[key_maps.Rule]]
    column_scales: bool = False
    index_tables: bool = False
    dense: bool = False

    def rename(self, settings: dict) -> Callable[[str], str]:
        """Return the function from mmplugin's keys to the keys of this format."""
        return key_maps.renamer(self.rules(settings))

    def shape(self, key: str, shape: torch.Size) -> torch.Size:
        """Return the shape in this format of mmplugin's tensor ``key``."""
        return torch.Size((*shape, 1, 1)) if self.column_scales and '.layer_scale_' in key else shape


ORIGINAL, DENSE, TIMM, MMPRETRAIN, MMPLUGIN = 'original', 'original dense', 'timm', 'mmpretrain', 'mmplugin'

FORMATS = (
    Format(ORIGINAL, 'v1', key_maps.original_v1, index_tables=True),
    Format(ORIGINAL, 'v2', key_maps.original_v2, column_scales=True, index_tables=True),
    Format(ORIGINAL, 'evit', key_maps.original_evit, index_tables=True),
    Format(DENSE, 'v1', key_maps.dense(key_maps.original_v1), index_tables=True, dense=True),
    Format(DENSE, 'v2', key_maps.dense(key_maps.original_v2), column_scales=True, index_tables=True, dense=True),
    Format(TIMM, 'v1', key_maps.timm_v1, index_tables=True),
    Format(TIMM, 'v2', key_maps.timm_v2),
    Format(TIMM, 'evit', key_maps.timm_evit),
    Format(MMPRETRAIN, 'v1', key_maps.mmpretrain_v1, index_tables=True),
    Format(MMPLUGIN, 'v1', key_maps.mmplugin),
    Format(MMPLUGIN, 'v2', key_maps.mmplugin),
    Format(MMPLUGIN, 'evit', key_maps.mmplugin),
)
CUSTOM = 'For a custom variant in a format other than that of mmplugin, pass its arch: --arch FILE.json'
ARCHS = {arch: family for family, backbone in FAMILIES.items() for arch in backbone.ARCHS}


def get(origin: str, family: str) -> Format:
    """Return the format of a project for a family."""
    return next(form for form in FORMATS if (form.origin, form.family) == (origin, family))


@dataclass(frozen=True)
class Recognized:
    """A format, a variant, and the arguments of the backbone that follow from the shapes.

    Args:
        form: Format of the file.
        arch: Name of the variant, or its settings.
        arguments: Arguments of the backbone that differ from the defaults.
        stages: Number of stages in the file.
    """

    form: Format
    arch: str | dict
    arguments: dict[str, Any]
    stages: int

    @property
    def settings(self) -> dict:
        """Settings of the variant: widths, depths, etc."""
        return settings(self.form.family, self.arch)

    @property
    def rename(self) -> Callable[[str], str]:
        """Function from mmplugin's keys to the keys of the file."""
        return self.form.rename(self.settings)

    @property
    def backbone(self) -> dict[str, Any]:
        """Config of the backbone that loads these weights."""
        arguments = dict(self.arguments)
        if self.stages < len(FAMILIES[self.form.family].STRIDES):
            arguments.setdefault('out_indices', tuple(range(self.stages)))
        return dict(type=FAMILIES[self.form.family].__name__, arch=self.arch, **arguments)

    def __str__(self) -> str:
        return f'{FAMILIES[self.form.family].__name__} {arch_name(self.arch)} ({self.form.origin})'


def settings(family: str, arch: str | dict) -> dict:
    """Return the settings of a variant."""
    return arch if isinstance(arch, dict) else FAMILIES[family].ARCHS[arch]


def skeleton(family: str, arch: str | dict, **arguments: Any) -> dict[str, Tensor]:
    """Return the state dict of a backbone as meta tensors."""
    with torch.device('meta'):
        return FAMILIES[family](arch, **arguments).state_dict()


@lru_cache(maxsize=len(ARCHS))
def _skeleton(arch: str) -> dict[str, Tensor]:
    return skeleton(ARCHS[arch], arch)


@lru_cache(maxsize=64)
def _shapes(form: Format, arch: str) -> dict[str, torch.Size]:
    """Return the keys and shapes of a variant in a format, for default arguments."""
    rename = form.rename(settings(form.family, arch))
    return {rename(key): form.shape(key, value.shape) for key, value in _skeleton(arch).items()}


def recognize(
    weights: Mapping[str, Tensor], arch: str | dict | None = None, named_by: str = 'the arch that was given'
) -> Recognized:
    """Recognize format and variant from keys and shapes.

    Args:
        weights: State dict without prefixes.
        arch: Expected variant. A dict is required for a custom variant in the format of another project.
        named_by: Where ``arch`` comes from, for messages.
    """
    matches = {
        (form, name): _similarity(weights, _shapes(form, name))
        for form in FORMATS
        if not form.dense
        for name in FAMILIES[form.family].ARCHS
    }
    form, found = max(matches, key=matches.__getitem__)
    if isinstance(arch, dict):
        family = arch_of.family_of(weights)
        form = _dense(form, weights) if family is None else get(MMPLUGIN, family)
        return _with_given_arch(weights, form, found, arch, named_by)
    known = _with_arch_of_shapes(weights, matches[form, found])
    if known is None:
        if matches[form, found] < 0.2:
            raise _unsupported(weights)
        form = _dense(form, weights)
        known = Recognized(form, found, *_arguments(weights, form, found))
    if check_arch(arch) not in (None, known.arch):
        named, different = check_arch(arch) or '', ''
        if known.form.origin == MMPLUGIN and ARCHS[named] == known.form.family:
            both = [arch_of.shown(known.form.family, either) for either in (named, known.arch)]
            different = f' ({"; ".join(arch_of.differences(both[0], both[1]))})'
        raise UserError(f'these are weights of {known}, not of {arch}{different}; omit --arch, or use another file')
    return known


def _dense(form: Format, weights: Mapping[str, Tensor]) -> Format:
    """Tell the authors' dense files from their classification files, which share nearly all keys."""
    dense = form.origin == ORIGINAL and any(re.match(r'norm[0246]\.|.*\.attention_biases_seg$', key) for key in weights)
    return get(DENSE, form.family) if dense else form


def _with_arch_of_shapes(weights: Mapping[str, Tensor], similarity: float) -> Recognized | None:
    """Return a custom variant in mmplugin's format, if it fits better than the published variant does."""
    family = arch_of.family_of(weights)
    if family is None:
        return None
    try:
        arch = arch_of.arch_from(family, arch_of.read(family, weights))
        if isinstance(arch, str):
            return None
        _check_count(family, arch, weights)
    except UserError:  # the weights are damaged
        return None
    form, own = get(MMPLUGIN, family), skeleton(family, arch)
    if _similarity(weights, {key: value.shape for key, value in own.items()}) <= similarity:
        return None
    return Recognized(form, arch, *_arguments(weights, form, arch))


def _with_given_arch(
    weights: Mapping[str, Tensor], form: Format, published: str, arch: dict, named_by: str
) -> Recognized:
    """Return the variant that ``arch`` describes, unless the weights clearly show another one."""
    family = form.family
    try:
        FAMILIES[family].check_arch(arch)  # it may come from the file
    except UserError as error:
        raise UserError(
            f'these are weights of {FAMILIES[family].__name__} ({form.origin}), but {named_by} does not fit: {error}'
        ) from error
    _check_count(family, arch, weights)
    if form.origin == MMPLUGIN:
        found = arch_of.read(family, weights)
        holds: str | dict = arch_of.arch_from(family, found)
    else:
        is_published = all(
            key in weights and (weights[key].shape == shape or 'attention_bias' in key)
            for key, shape in _shapes(form if not form.dense else get(ORIGINAL, family), published).items()
        )
        found, holds = arch_of.shown(family, published if is_published else arch), published
    if different := arch_of.differences(arch_of.shown(family, arch), found):
        raise UserError(
            f'these are weights of {FAMILIES[family].__name__} {arch_name(holds)} ({form.origin}), not of {named_by}: '
            f'{"; ".join(different)}. Use arch={holds!r}, or other weights'
        )
    return Recognized(form, arch, *_arguments(weights, form, arch))


def _check_count(family: str, arch: dict, weights: Mapping[str, Tensor]) -> None:
    """Refuse an arch with more modules than there are tensors, before it is built: it may come from the file."""
    heads = arch['heads'] if family == 'evit' else [1] * len(arch['depths'])
    count = sum(map(mul, arch['depths'], heads))
    if count > len(weights):
        raise UserError(f'{count} blocks or heads in arch, but only {len(weights)} tensors: another network')


def _unsupported(weights: Mapping[str, Tensor]) -> UserError:
    known = '; '.join(f'{backbone.__name__} {" ".join(backbone.ARCHS)}' for backbone in FAMILIES.values())
    return UserError(
        f'not the weights of a supported network. The file has {len(weights)} tensors: {some(weights) or "none"}. '
        f'Supported: {known}; as published by their authors, timm or mmpretrain, or written by mmplugin, which may '
        f'have any architecture. {CUSTOM}'
    )


def _similarity(weights: Mapping[str, Tensor], shapes: dict[str, torch.Size]) -> float:
    """Return the share of keys that agree, from 0 to 1. A key with a different shape counts half."""
    common = weights.keys() & shapes.keys()
    same = sum(weights[key].shape == shapes[key] for key in common)
    return (len(common) + same) / 2 / (len(weights) + len(shapes) - len(common))


def check_arch(arch: str | None) -> str | None:
    """Return the short name of an arch, e.g. 's0' for 'efficientformerv2_s0'."""
    if arch is None:
        return None
    short = arch.lower().replace('-', '_').rsplit('_', 1)[-1]
    if short not in ARCHS:
        raise UserError(f'unknown arch {arch!r}; allowed: {", ".join(ARCHS)}')
    return short


def _arguments(weights: Mapping[str, Tensor], form: Format, arch: str | dict) -> tuple[dict[str, Any], int]:
    """Return the arguments that follow from the shapes, and the number of stages."""
    family, stages = form.family, len(FAMILIES[form.family].STRIDES)
    rename = form.rename(settings(family, arch))
    arguments: dict[str, Any] = {}
    stem = weights.get(rename('stem.0.conv.weight'))
    if stem is not None and stem.dim() == 4 and stem.shape[1] != 3:
        arguments['in_channels'] = stem.shape[1]
    if form.origin == MMPLUGIN:
        stages = 1 + max((int(i) for i in _captured(r'stages\.([0-3])\.', weights)), default=0)
    if family != 'evit':
        own = skeleton(family, arch) if isinstance(arch, dict) else _skeleton(arch)
        grid = next(_grids(weights, own, rename), None)
        # For mmplugin's own files this is a guess, which `convert` replaces by the saved config.
        if form.dense or (form.origin == MMPLUGIN and grid in (16, 25)):
            arguments['attention_bias'] = 'upstream'
        if grid not in (None, 7):
            arguments['bias_grid'] = grid
    if form.dense and family == 'v1':
        arguments['out_norm'] = True
    elif family == 'v1':
        norms = [i for i in range(stages) if rename(f'out_norms.{i}.weight') in weights]
        # A single norm after the last stage belongs to the head of mmpretrain's classifier.
        if norms and not (form.origin == MMPRETRAIN and norms == [3]):
            arguments['out_norm'] = True
            if len(norms) < len(FAMILIES[family].STRIDES):
                arguments['out_indices'] = tuple(norms)
                stages = min(stages, norms[-1] + 1)
    return arguments, stages


def _captured(pattern: str, weights: Mapping[str, Tensor]) -> Iterator[str]:
    return (match[1] for match in (re.match(pattern, key) for key in weights) if match)


def _grids(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], rename: Callable) -> Iterator[int]:
    """Yield the sides of the bias tables, in cells of stride 32."""
    for key in own:
        table = weights.get(rename(key)) if key.endswith('.table') else None
        if table is not None and table.dim() == 2 and isqrt(table.shape[1]) ** 2 == table.shape[1]:
            side = isqrt(table.shape[1])
            yield side // 2 if '.downsample.' in key else side
