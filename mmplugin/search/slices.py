"""Slices: where the weights of a sub-network lie inside those of a large network, which may have more blocks."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmplugin.errors import UserError

from .pools import Pools
from .space import Sizes, sizes_of

Blocks = Sequence[Sequence[int]]  # for each stage, the blocks of the large network that stay
Selection = int | Tensor | None  # along one dimension: so many of the first entries, these entries, or all

BLOCK = re.compile(r'stages\.(\d)\.blocks\.(\d+)\.')


def attention_counts(family: str, arch: Mapping[str, Any]) -> list[int]:
    """Return for each stage how many of the last blocks are of another kind, with attention, in an explicit arch."""
    if family == 'evit':  # all blocks are alike
        return [0] * len(arch['depths'])
    return [0, 0, 0, arch['attention_blocks']] if family == 'v1' else [0, 0, *arch['attention_blocks']]


def default_blocks(family: str, large: Mapping[str, Any], small: Mapping[str, Any]) -> list[list[int]]:
    """Return which blocks a smaller arch keeps by default: the first ones, and the last ones for those with attention.

    Args:
        family: 'v1', 'v2' or 'evit'.
        large: Explicit arch of the large network.
        small: Explicit arch of the sub-network.
    """
    counts = zip(large['depths'], small['depths'], attention_counts(family, small), strict=True)
    return [[*range(depth - last), *range(most - last, most)] for most, depth, last in counts]


class Slices:
    """Where the weights of a sub-network lie in those of a large one.

    Args:
        pools: Pools of the large network.
        arch: Explicit arch of the sub-network.
        blocks: For each stage, the blocks of the large network that stay; those of ``default_blocks`` if None.
        kept: For each pool of the large network that shrinks, the channels to keep; the first ones if None.
    """

    def __init__(
        self,
        pools: Pools,
        arch: Mapping[str, Any],
        blocks: Blocks | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ):
        self.pools, self.arch = pools, arch
        chosen = default_blocks(pools.family, pools.arch, arch) if blocks is None else blocks
        self.blocks = [list(of_stage) for of_stage in chosen]
        self._check_blocks()
        counts = self._counts()
        if kept is None:
            kept = {pool: torch.arange(count) for pool, count in counts.items() if count < pools.count[pool]}
        self.kept = kept

    def source(self, key: str) -> str:
        """Return the name in the large network of a weight of the sub-network."""
        match = BLOCK.match(key)
        if not match:
            return key
        stage, block = int(match[1]), int(match[2])
        return f'stages.{stage}.blocks.{self.blocks[stage][block]}.{key[match.end() :]}'

    def selections(self, source: str, shape: torch.Size) -> tuple[Selection, ...]:
        """Return what a weight of the large network keeps along its first dimensions."""
        found: list[Selection] = []
        for axis in self.pools.axes_of(source, shape)[: len(shape)]:
            segments = self.pools.axes[axis] if axis else []
            if not any(segment.pool in self.kept for segment in segments):
                found.append(None)
                continue
            assert axis is not None
            indices = self.pools.indices(axis, self.kept)
            is_start = bool((indices == torch.arange(len(indices))).all())
            found.append(len(indices) if is_start else indices)
        return tuple(found)

    def _counts(self) -> dict[str, int]:
        """Return the channels of each pool of the large network that the sub-network has."""
        sizes: Sizes = {}
        for size, n in sizes_of(self.pools.family, dict(self.arch)).items():
            kind, _, place = size.partition('.')
            if kind == 'hidden':
                stage, block = map(int, place.split('.'))
                size = f'hidden.{stage}.{self.blocks[stage][block]}'
            if kind != 'block':
                sizes[size] = n
        counts = {pool: sizes[size] // divisor for pool, (size, divisor) in self.pools.sizes.items() if size in sizes}
        larger = [
            f'{pool}: {count} of {self.pools.count[pool]}'
            for pool, count in counts.items()
            if count > self.pools.count[pool]
        ]
        if larger:
            raise UserError(
                f'the arch is no sub-network, it has more channels than the large network: {"; ".join(larger[:8])}'
            )
        return counts

    def _check_blocks(self) -> None:
        family, large, small = self.pools.family, self.pools.arch, self.arch
        problems = [
            f'{key} is {small[key]}, but the large network has {large[key]}'
            for key in ('heads', 'kernels')
            if small.get(key) != large.get(key)
        ]
        if any(a > b for a, b in zip(small['depths'], large['depths'], strict=True)):
            problems.append(f'depths is {small["depths"]}, but the large network has {large["depths"]}')
        counts = attention_counts(family, small), attention_counts(family, large)
        if any(a > b for a, b in zip(*counts, strict=True)):
            problems.append(
                f'attention_blocks is {small["attention_blocks"]}, but the large network has '
                f'{large["attention_blocks"]}'
            )
        if problems:
            raise UserError(f'the arch is no sub-network: {"; ".join(problems)}')
        for i, (chosen, own, all_) in enumerate(zip(self.blocks, *counts, strict=True)):
            depth, most = small['depths'][i], large['depths'][i]
            if len(chosen) != depth or sorted(set(chosen)) != chosen or not set(chosen) <= set(range(most)):
                raise UserError(
                    f'blocks of stage {i + 1} is {chosen}; allowed: {depth} different numbers from 0 to {most - 1}, '
                    'in their order'
                )
            for block, number in enumerate(chosen):
                with_attention = block >= depth - own, number >= most - all_
                if with_attention == (True, False) or (family == 'v1' and with_attention == (False, True)):
                    kinds = ['attention' if kind else 'no attention' for kind in with_attention]
                    raise UserError(
                        f'stage {i + 1}: block {block} of the sub-network has {kinds[0]}, block {number} of the large '
                        f'network has {kinds[1]}; give other blocks, or another number of attention_blocks'
                    )


def take(weight: Tensor, selections: Sequence[Selection]) -> Tensor:
    """Return the selected entries of a weight, through which gradients flow; the weight itself if all are."""
    for dim, selection in enumerate(selections):
        if isinstance(selection, int):
            weight = weight.narrow(dim, 0, selection)
        elif selection is not None:
            weight = weight.index_select(dim, selection.to(weight.device))
    return weight.contiguous()
