"""Which channels each weight of a backbone consists of: one ordered table per family, from names to axes.

A rule is a pattern of the beginning of a weight's name and the axes (output, input) of the weights there. In an axis,
``{s}`` is the stage, ``{p}`` the stage before, ``{b}`` the block, ``{h}`` the head. A weight without a rule, such as a
bias table, does not depend on any size. Depthwise convolutions have an output axis only.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmplugin.backbones import FAMILIES

from .space import sizes_of


class Segment(NamedTuple):
    """Consecutive entries of an axis that come from one pool."""

    pool: str
    offset: int


Rule = tuple[str, str | None, str | None]
STAGE, BLOCK = r'stages\.(?P<s>\d)\.', r'stages\.(?P<s>\d)\.blocks\.(?P<b>\d+)\.'
WIDTH = 'width.{s}'
V1: list[Rule] = [
    (r'stem\.0', 'stem.1', None),
    (r'stem\.2', 'width.0', 'stem.1'),
    (STAGE + 'downsample', WIDTH, 'width.{p}'),
    (BLOCK + r'(norm1|norm2|layer_scale_1|layer_scale_2)', WIDTH, None),
    (BLOCK + r'mlp\.fc1', 'hidden.{s}.{b}', WIDTH),
    (BLOCK + r'mlp\.fc2', WIDTH, 'hidden.{s}.{b}'),
    (BLOCK + r'token_mixer\.qkv', 'qkv.{s}.{b}', WIDTH),
    (BLOCK + r'token_mixer\.proj', WIDTH, 'values.{s}.{b}'),
    (r'out_norms\.(?P<s>\d)', WIDTH, None),
]
V2: list[Rule] = [
    (r'stem\.0', 'stem.1', None),
    (r'stem\.2', 'width.0', 'stem.1'),
    (STAGE + r'downsample\.conv', WIDTH, 'width.{p}'),
    (STAGE + r'downsample\.attn\.q\.local', 'width.{p}', None),
    (STAGE + r'downsample\.attn\.(q\.proj|k|v)\.conv\.weight', None, 'width.{p}'),
    (STAGE + r'downsample\.attn\.proj', WIDTH, None),
    (BLOCK + r'(layer_scale_1|layer_scale_2)', WIDTH, None),
    (BLOCK + r'mlp\.fc1', 'hidden.{s}.{b}', WIDTH),
    (BLOCK + r'mlp\.mid', 'hidden.{s}.{b}', None),
    (BLOCK + r'mlp\.fc2', WIDTH, 'hidden.{s}.{b}'),
    (BLOCK + r'token_mixer\.stride_conv', WIDTH, None),
    (BLOCK + r'token_mixer\.(q|k)\.', 'keys.{s}.{b}', WIDTH),
    (BLOCK + r'token_mixer\.v\.', 'values.{s}.{b}', WIDTH),
    (BLOCK + r'token_mixer\.v_local', 'values.{s}.{b}', None),
    (BLOCK + r'token_mixer\.proj', WIDTH, 'values.{s}.{b}'),
]
EVIT: list[Rule] = [
    (r'stem\.0', 'stem.1', None),
    (r'stem\.2', 'stem.2', 'stem.1'),
    (r'stem\.4', 'stem.3', 'stem.2'),
    (r'stem\.6', 'width.0', 'stem.3'),
    (STAGE + r'downsample\.dw0', 'width.{p}', None),
    (STAGE + r'downsample\.ffn0\.pw1', 'downsample.{p}.0', 'width.{p}'),
    (STAGE + r'downsample\.ffn0\.pw2', 'width.{p}', 'downsample.{p}.0'),
    (STAGE + r'downsample\.merge\.conv1', 'merge.{p}', 'width.{p}'),
    (STAGE + r'downsample\.merge\.conv2', 'merge.{p}', None),
    (STAGE + r'downsample\.merge\.se\.fc1', 'squeeze.{p}', 'merge.{p}'),
    (STAGE + r'downsample\.merge\.se\.fc2', 'merge.{p}', 'squeeze.{p}'),
    (STAGE + r'downsample\.merge\.conv3', WIDTH, 'merge.{p}'),
    (STAGE + r'downsample\.dw1', WIDTH, None),
    (STAGE + r'downsample\.ffn1\.pw1', 'downsample.{p}.1', WIDTH),
    (STAGE + r'downsample\.ffn1\.pw2', WIDTH, 'downsample.{p}.1'),
    (BLOCK + 'dw[01]', WIDTH, None),
    (BLOCK + r'ffn(?P<h>[01])\.pw1', 'hidden.{s}.{b}.{h}', WIDTH),
    (BLOCK + r'ffn(?P<h>[01])\.pw2', WIDTH, 'hidden.{s}.{b}.{h}'),
    (BLOCK + r'mixer\.qkvs\.(?P<h>\d+)', 'qkv.{s}.{b}.{h}', 'share.{s}'),
    (BLOCK + r'mixer\.dws\.(?P<h>\d+)', 'key.{s}.{b}.{h}', None),
    (BLOCK + r'mixer\.proj', WIDTH, WIDTH),
]
RULES = {
    family: [
        (re.compile(rf'{pattern}(\.|$)' if not pattern.endswith(r'\.') else pattern), out, in_)
        for pattern, out, in_ in rules
    ]
    for family, rules in {'v1': V1, 'v2': V2, 'evit': EVIT}.items()
}


class Pools:
    """Pools and axes of one network.

    Attributes:
        sizes: For each pool, the name of the size that selects from it, and by what to divide the size.
        count: For each pool, the number of its channels.
        axes: For each axis, its segments. A pool is an axis, too.
    """

    def __init__(self, family: str, arch: str | dict):
        self.family, self.arch = family, FAMILIES[family].explicit(arch)
        self.sizes: dict[str, tuple[str, int]] = {}
        self.axes: dict[str, list[Segment]] = {}
        getattr(self, f'_{family}')()
        own = sizes_of(family, self.arch)
        self.count = {pool: own[size] // divisor for pool, (size, divisor) in self.sizes.items()}
        for pool in self.sizes:
            self.axes.setdefault(pool, [Segment(pool, 0)])

    def _stages(self) -> None:
        for i, depth in enumerate(self.arch['depths']):
            self.sizes[f'width.{i}'] = f'width.{i}', 1
            self.sizes |= {f'hidden.{i}.{j}': (f'hidden.{i}.{j}', 1) for j in range(depth)}

    def _attention(self, stage: int, block: int, heads: int = 8) -> tuple[list[str], list[str]]:
        """Add the pools of one attention block, and return those of keys and of values, by head."""
        names = [[f'{kind}.{stage}.{block}.{h}' for h in range(heads)] for kind in ('key', 'value')]
        self.sizes |= dict.fromkeys(names[0], ('key', 1)) | dict.fromkeys(names[1], ('value', 1))
        value_dim = self.arch['value_dim']
        self.axes[f'values.{stage}.{block}'] = [Segment(name, h * value_dim) for h, name in enumerate(names[1])]
        return names[0], names[1]

    def _v1(self) -> None:
        self.sizes['stem.1'] = 'width.0', 2
        self._stages()
        key, value, depth = self.arch['key_dim'], self.arch['value_dim'], self.arch['depths'][3]
        for j in range(depth - self.arch['attention_blocks'], depth):
            segments = []
            for h, (k, v) in enumerate(zip(*self._attention(3, j), strict=True)):
                start = h * (2 * key + value)
                segments += [Segment(k, start), Segment(k, start + key), Segment(v, start + 2 * key)]
            self.axes[f'qkv.3.{j}'] = segments

    def _v2(self) -> None:
        self.sizes['stem.1'] = 'width.0', 2
        self._stages()
        key = self.arch['key_dim']
        for i, count in zip((2, 3), self.arch['attention_blocks'], strict=True):
            for j in range(self.arch['depths'][i] - count, self.arch['depths'][i]):
                keys, _ = self._attention(i, j)
                self.axes[f'keys.{i}.{j}'] = [Segment(name, h * key) for h, name in enumerate(keys)]

    def _evit(self) -> None:
        self.sizes |= {f'stem.{i}': ('width.0', divisor) for i, divisor in ((1, 8), (2, 4), (3, 2))}
        for i, (width, heads, key) in enumerate(
            zip(self.arch['widths'], self.arch['heads'], self.arch['key_dims'], strict=True)
        ):
            share = width // heads
            self.sizes[f'share.{i}'] = f'width.{i}', heads
            # The cascade adds a head's output to the next head's share: all heads keep the same channels.
            self.axes[f'width.{i}'] = [Segment(f'share.{i}', h * share) for h in range(heads)]
            for j in range(self.arch['depths'][i]):
                self.sizes |= {f'hidden.{i}.{j}.{n}': (f'hidden.{i}.{j}', 1) for n in range(2)}
                for h in range(heads):
                    name = f'key.{i}.{j}.{h}'
                    self.sizes[name] = f'key.{i}', 1
                    self.axes[f'qkv.{i}.{j}.{h}'] = [
                        Segment(name, 0),
                        Segment(name, key),
                        Segment(f'share.{i}', 2 * key),
                    ]
        for i in range(len(self.arch['merge_ratio'])):
            self.sizes |= {f'downsample.{i}.{n}': (f'downsample.{i}.{n}', 1) for n in range(2)}
            self.sizes |= {f'merge.{i}': (f'merge.{i}', 1), f'squeeze.{i}': (f'merge.{i}', 4)}

    def of_size(self, size: str) -> list[str]:
        """Return the pools from which a size selects."""
        return [pool for pool, (name, _) in self.sizes.items() if name == size]

    def axes_of(self, key: str, shape: torch.Size) -> tuple[str | None, str | None]:
        """Return the names of the output and the input axis of a weight."""
        for pattern, out, in_ in RULES[self.family]:
            if match := pattern.match(key):
                groups = match.groupdict()
                groups['p'] = int(groups.get('s') or 0) - 1
                has_input = len(shape) > 1 and key.endswith('weight')
                return (
                    out and out.format(**groups),
                    in_.format(**groups) if in_ and has_input else None,
                )
        return None, None

    def indices(self, axis: str, kept: Mapping[str, Tensor]) -> Tensor:
        """Return the positions of the kept channels in an axis. Pools that are not in ``kept`` keep all."""
        return torch.cat([
            segment.offset + kept.get(segment.pool, torch.arange(self.count[segment.pool]))
            for segment in self.axes[axis]
        ])  # fmt: skip

    def inputs(self, weights: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the names of all weights that have an input axis, and the name of the axis."""
        for key, weight in weights.items():
            axis = self.axes_of(key, weight.shape)[1]
            if axis:
                yield key, axis
