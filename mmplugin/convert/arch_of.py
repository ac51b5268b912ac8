"""The architecture of weights in mmplugin's own format, read from keys and shapes."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError

from .sources import unwrap

# For each key of an arch, one value for each stage that the weights have. None where nothing shows the value.
Found = dict[str, tuple]

HEADS = 8  # of the attention of v1 and v2
KEYS = {  # of blocks and of downsampling
    'evit': r'stem\.6\.|stages\.\d\.(blocks\.\d+|downsample)\.ffn[01]\.',
    'v2': r'stages\.\d\.(blocks\.\d+\.mlp\.mid|downsample\.conv\.conv)\.',
    'v1': r'stages\.\d\.(blocks\.\d+\.mlp\.fc1|downsample\.conv)\.',
}
STEMS = {'v1': 'stem.2', 'v2': 'stem.2', 'evit': 'stem.6'}
DOWNSAMPLING = {'v1': 'downsample', 'v2': 'downsample.conv', 'evit': 'downsample.merge.conv3'}
HIDDEN = {'v1': 'mlp.fc1', 'v2': 'mlp.fc1', 'evit': 'ffn0.pw1'}


def arch_of(state_dict: Mapping[str, Any]) -> tuple[str, str | dict]:
    """Return family and arch of a backbone's weights: the name of a published variant, or a dict.

    The last stages may be missing, as with ``out_indices``: in the dict, they have no blocks. What weights do not show
    has its default: the dimensions of attention without attention blocks, and ``drop_path_rate``.

    Args:
        state_dict: State dict or checkpoint in mmplugin's format, of a backbone, a detector or a segmentor.
    """
    weights = unwrap(state_dict).weights
    family = family_of(weights)
    if family is None:
        raise UserError(
            "these are not the weights of a backbone in mmplugin's format; convert other files with `mmplugin convert`"
        )
    return family, arch_from(family, read(family, weights))


def family_of(weights: Mapping[str, Tensor]) -> str | None:
    """Return the family of weights in mmplugin's format, or None for other weights."""
    if not any(key.startswith('stem.0.') for key in weights):
        return None
    return next((family for family, keys in KEYS.items() if any(re.match(keys, key) for key in weights)), None)


def read(family: str, weights: Mapping[str, Tensor]) -> Found:
    """Return what the weights show of each stage."""
    layers = _Layers(weights, len(FAMILIES[family].STRIDES))
    depths = tuple(1 + max(blocks, default=-1) for blocks in layers.blocks)
    if sum(depths) > len(weights):
        raise UserError(f'{sum(depths)} blocks, but only {len(weights)} tensors: not the weights of a network')
    names = [STEMS[family], *(f'stages.{i}.{DOWNSAMPLING[family]}' for i in range(1, len(depths)))]
    widths = tuple(map(layers.channels, names))
    own = _of_evit(layers, widths) if family == 'evit' else _of_attention(layers, family)
    hidden = tuple(
        tuple(layers.channels(f'stages.{i}.blocks.{j}.{HIDDEN[family]}') for j in range(depth))
        for i, depth in enumerate(depths)
    )
    return dict(widths=widths, depths=depths, **own, hidden=hidden)


class _Layers:
    """Keys and shapes by layer.

    ``blocks`` and ``mixers`` are the numbers of the blocks, and of those with attention, of each stage.
    """

    def __init__(self, weights: Mapping[str, Tensor], most_stages: int):
        self.weights = weights
        self.blocks: list[set[int]] = [set()]
        self.mixers: list[set[int]] = [set()]
        for match in filter(None, map(re.compile(r'stages\.(\d)\.(?:blocks\.(\d{1,4})\.(token_)?)?').match, weights)):
            stage = int(match[1])
            if stage >= most_stages:
                continue
            while len(self.blocks) <= stage:
                self.blocks.append(set())
                self.mixers.append(set())
            if match[2]:
                self.blocks[stage].add(int(match[2]))
            if match[3]:
                self.mixers[stage].add(int(match[2]))

    def size(self, key: str, dims: int, axis: int = 0) -> int | None:
        """Return one size of a tensor, or None if there is no tensor with so many dimensions."""
        value = self.weights.get(key)
        return int(value.shape[axis]) if value is not None and value.dim() == dims else None

    def channels(self, layer: str) -> int | None:
        """Return the output channels of a convolution or linear layer, from any of its tensors."""
        sizes = (
            self.size(layer + suffix, dims)
            for suffix, dims in (('.conv.weight', 4), ('.norm.weight', 1), ('.weight', 2), ('.bias', 1))
        )
        return next((size for size in sizes if size is not None), None)


def _of_attention(layers: _Layers, family: str) -> Found:
    """Return the keys of V1 and V2: attention in some blocks."""
    dims: list[tuple[int | None, int | None]] = []
    for i, mixers in enumerate(layers.mixers):
        name = f'stages.{i}.blocks.{max(mixers, default=0)}.token_mixer.'
        if family == 'v2':
            keys, values = layers.channels(f'{name}q'), layers.channels(f'{name}v')
        else:
            everything, values = layers.channels(f'{name}qkv'), layers.size(f'{name}proj.weight', 2, 1)
            keys = (everything - values) // 2 if everything and values else None
        dims.append((keys and keys // HEADS, values and values // HEADS))
    key_dim, value_dim = zip(*dims, strict=True)
    return dict(attention_blocks=tuple(map(len, layers.mixers)), key_dim=key_dim, value_dim=value_dim)


def _of_evit(layers: _Layers, widths: tuple[int | None, ...]) -> Found:
    """Return the keys of EfficientViT: heads, and the networks around patch merging."""
    found: dict[str, list] = dict(heads=[], kernels=[], key_dims=[], downsample_hidden=[], merge_ratio=[])
    for i, width in enumerate((None, *widths[:-1])):
        mixer = f'stages.{i}.blocks.0.mixer.'
        kernels: list[int] = []
        while (kernel := layers.size(f'{mixer}dws.{len(kernels)}.conv.weight', 4, 3)) is not None:
            kernels.append(kernel)
        heads = layers.size(f'{mixer}attention_biases.table', 2)
        found['heads'].append(heads)
        found['kernels'].append(tuple(kernels) if len(kernels) == heads else None)
        found['key_dims'].append(layers.channels(f'{mixer}dws.0'))
        downsample = f'stages.{i}.downsample.'
        before_after = layers.channels(f'{downsample}ffn0.pw1'), layers.channels(f'{downsample}ffn1.pw1')
        found['downsample_hidden'].append(before_after if all(before_after) else None)
        merge = layers.channels(f'{downsample}merge.conv1')
        found['merge_ratio'].append(merge / width if merge and width else None)
    return {key: tuple(values) for key, values in found.items()}


def arch_from(family: str, found: Found) -> str | dict:
    """Return the published variant with these stages, or else an arch dict, in which defaults are omitted.

    What is None gets its default, and stages that are missing get no blocks.
    """
    for name, row in _rows(family).items():
        if not differences(found, row):
            return name
    cls = FAMILIES[family]
    arch = _completed(family, found)
    explicit = cls.explicit(arch)
    for key in ('hidden', *cls.OPTIONAL):
        shorter = {name: value for name, value in arch.items() if name != key}
        if (key != 'hidden' or family != 'v2') and cls.explicit(shorter) == explicit:
            arch = shorter
    return arch


@lru_cache
def _rows(family: str) -> dict[str, Found]:
    """Return the published variants as their weights show them."""
    cls: Any = FAMILIES[family]
    with torch.device('meta'):
        return {name: read(family, cls(name).state_dict()) for name in cls.ARCHS}


def _completed(family: str, found: Found) -> dict[str, Any]:
    """Return an arch with all keys for all stages."""
    cls: Any = FAMILIES[family]
    stages = range(len(cls.STRIDES))

    def of_stage(key: str, i: int, default: Any) -> Any:
        value = found[key][i] if i < len(found[key]) else None
        return default if value is None else value

    widths: list[int] = []
    for i in stages:
        widths.append(of_stage('widths', i, widths[-1] if widths else 64))
    hidden = [[size or cls.RATIO * widths[i] for size in of_stage('hidden', i, ())] for i in stages]
    arch = dict(
        widths=tuple(widths), depths=tuple(of_stage('depths', i, 0) for i in stages), hidden=tuple(map(tuple, hidden))
    )
    if family == 'evit':
        kernels = sorted((kernels for kernels in found['kernels'] if kernels), key=len)
        return dict(
            arch,
            heads=tuple(of_stage('heads', i, 1) for i in stages),
            kernels=kernels[-1] if kernels else (3,),
            key_dims=tuple(of_stage('key_dims', i, cls.KEY_DIM) for i in stages),
            downsample_hidden=tuple(
                of_stage('downsample_hidden', i, (2 * widths[i - 1], 2 * widths[i])) for i in stages[1:]
            ),
            merge_ratio=tuple(of_stage('merge_ratio', i, cls.MERGE_RATIO) for i in stages[1:]),
        )
    blocks = [of_stage('attention_blocks', i, 0) for i in stages]
    dims = {
        key: next((value for value in found[key] if value is not None), default)
        for key, default in (('key_dim', cls.KEY_DIM), ('value_dim', cls.VALUE_DIM))
    }
    return dict(arch, attention_blocks=tuple(blocks[-2:]) if family == 'v2' else blocks[-1], **dims)


def differences(one: Found, other: Found, most: int = 4) -> list[str]:
    """Return what differs in the stages that both have, in words: first ``one``, then ``other``, which is a file."""
    texts = []
    stages = range(min(len(one['depths']), len(other['depths'])))
    for key in one:
        values, others = one[key][: len(stages)], other[key][: len(stages)]
        different = [i for i in stages if _differ(values[i], others[i])]
        if different and None not in (*values, *others) and key != 'hidden':
            texts.append(f'{key} {values}, the file has {others}')
        elif different:
            texts += [f'{key} of stage {i + 1} {values[i]}, the file has {others[i]}' for i in different]
    return texts if len(texts) <= most else [*texts[:most], f'and {len(texts) - most} more']


def _differ(one: Any, other: Any) -> bool:
    """Compare what both show. Tuples of different lengths belong to different depths or heads, which are compared."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and any(map(_differ, one, other))
    return None not in (one, other) and one != other


def shown(family: str, arch: str | dict) -> Found:
    """Return what the weights of an arch show."""
    if isinstance(arch, str):
        return _rows(family)[arch]
    cls: Any = FAMILIES[family]
    with torch.device('meta'):
        return read(family, cls(arch).state_dict())
