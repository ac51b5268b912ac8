"""The sub-networks of a network that have fewer channels or blocks: their sizes, and what belongs together.

A *size* is a number that the search may reduce: the width of a stage, the hidden channels of a feed-forward network,
the dimensions of queries, keys and values, and 1 for a block that is there. A *pool* is a set of channels from which a
size selects: all heads of all attention blocks have as many query channels, but each head selects its own. An *axis* of
a weight consists of pools.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError

STEP = 8  # channels that are removed together, so that kernels keep whole vectors
KINDS = {  # of the sizes, and how reports name them
    'block': 'blocks',
    'width': 'width',
    'hidden': 'feed-forward network',
    'downsample': 'feed-forward network',
    'merge': 'patch merging',
    'key': 'queries and keys',
    'value': 'values',
}
Sizes = dict[str, int]


def sizes_of(family: str, arch: str | dict) -> Sizes:
    """Return the sizes of an arch, by name: ``width.2``, ``hidden.2.0`` (stage, block), ``block.2.0``, ``key``, ..."""
    explicit = FAMILIES[family].explicit(arch)
    widths = explicit['widths']
    sizes = {f'width.{i}': width for i, width in enumerate(widths)}
    sizes |= {f'hidden.{i}.{j}': n for i, of_stage in enumerate(explicit['hidden']) for j, n in enumerate(of_stage)}
    sizes |= {f'block.{i}.{j}': 1 for i, depth in enumerate(explicit['depths']) for j in range(depth)}
    if family == 'evit':
        sizes |= {
            f'downsample.{i}.{j}': n for i, pair in enumerate(explicit['downsample_hidden']) for j, n in enumerate(pair)
        }
        sizes |= {f'merge.{i}': round(ratio * widths[i]) for i, ratio in enumerate(explicit['merge_ratio'])}
        sizes |= {f'key.{i}': n for i, n in enumerate(explicit['key_dims']) if explicit['depths'][i]}
    elif explicit['attention_blocks'] not in (0, (0, 0)):
        sizes |= {'key': explicit['key_dim'], 'value': explicit['value_dim']}
    return sizes


def arch_with(family: str, arch: str | dict, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the explicit arch with these sizes; those that are not named stay."""
    explicit = FAMILIES[family].explicit(arch)
    sizes = {**sizes_of(family, explicit), **sizes}
    widths = tuple(sizes[f'width.{i}'] for i in range(len(explicit['widths'])))
    explicit['hidden'] = tuple(
        tuple(sizes[f'hidden.{i}.{j}'] for j in range(len(of_stage))) for i, of_stage in enumerate(explicit['hidden'])
    )
    if family == 'evit':
        explicit['downsample_hidden'] = tuple(
            tuple(sizes[f'downsample.{i}.{j}'] for j in range(2)) for i in range(len(widths) - 1)
        )
        explicit['merge_ratio'] = tuple(sizes[f'merge.{i}'] / widths[i] for i in range(len(widths) - 1))
        explicit['key_dims'] = tuple(sizes.get(f'key.{i}', n) for i, n in enumerate(explicit['key_dims']))
    elif 'key' in sizes:
        explicit.update(key_dim=sizes['key'], value_dim=sizes['value'])
    explicit['widths'] = widths
    gone = [(i, j) for i, depth in enumerate(explicit['depths']) for j in range(depth) if not sizes[f'block.{i}.{j}']]
    return without_blocks(family, explicit, gone)


def without_blocks(family: str, explicit: Mapping[str, Any], gone: Collection[tuple[int, int]]) -> dict[str, Any]:
    """Return an explicit arch without some blocks, each given by stage and block."""
    depths = explicit['depths']
    result = dict(
        explicit,
        depths=tuple(depth - sum(stage == i for stage, _ in gone) for i, depth in enumerate(depths)),
        hidden=tuple(
            tuple(n for j, n in enumerate(of_stage) if (i, j) not in gone)
            for i, of_stage in enumerate(explicit['hidden'])
        ),
    )
    if family != 'evit':  # attention is in the last blocks of a stage
        attention = explicit['attention_blocks']
        counts = {2: attention[0], 3: attention[1]} if family == 'v2' else {3: attention}
        left = {i: n - sum(s == i and j >= depths[i] - n for s, j in gone) for i, n in counts.items()}
        result['attention_blocks'] = tuple(left.values()) if family == 'v2' else left[3]
    return result


def kind_of(size: str) -> str:
    """Return the first word of a size's name, a key of ``KINDS``."""
    return size.partition('.')[0]


@dataclass(frozen=True)
class Space:
    """All networks that a network becomes when groups of channels are removed.

    Args:
        family: 'v1', 'v2' or 'evit'.
        start: The largest arch, in explicit form.
        fixed: Sizes that stay as they are, by name or by kind: ``width`` where the neck cannot be changed.
        widths: Widths whose eighths are the limits; None stands for those of ``start``.
    """

    family: str
    start: dict[str, Any]
    fixed: frozenset[str] = field(default_factory=frozenset)
    widths: tuple[int, ...] | None = None

    @classmethod
    def below(cls, family: str, arch: str | dict, fixed: Sequence[str] = ()) -> 'Space':
        """Return the space below an arch, by name or as a dict."""
        if family not in FAMILIES:
            raise UserError(f'there is no family {family!r}; allowed: {", ".join(FAMILIES)}')
        unknown = sorted(set(fixed) - set(KINDS) - set(sizes_of(family, arch)))
        if unknown:
            raise UserError(f'fixed is {unknown}; allowed: {", ".join(KINDS)}, or names of sizes such as width.0')
        return cls(family, FAMILIES[family].explicit(arch), frozenset(fixed))

    def at(self, arch: dict[str, Any]) -> 'Space':
        """Return the space below a smaller arch, in which widths have the same limits."""
        return replace(self, start=FAMILIES[self.family].explicit(arch), widths=self.widths or self.start['widths'])

    def step(self, size: str) -> int:
        """Return how many channels are removed at a time."""
        if kind_of(size) == 'block':
            return 1
        if self.family == 'evit' and kind_of(size) == 'width':  # each head has a share of the width
            return STEP * self.start['heads'][int(size.split('.')[1])]
        return STEP

    def least(self, size: str) -> int:
        """Return the smallest value: one step, and for widths an eighth of the start. One block of each stage stays."""
        if kind_of(size) == 'block':
            return 0
        step = self.step(size)
        if kind_of(size) != 'width':
            return step
        width = (self.widths or self.start['widths'])[int(size.split('.')[1])]
        return max(step, width // 8 // step * step)

    def actions(self, sizes: Mapping[str, int]) -> dict[str, Sizes]:
        """Return what can be removed next: the name of a size, and the sizes without one group of its channels."""
        gone = {size.partition('.')[2] for size, n in sizes.items() if kind_of(size) == 'block' and not n}
        last = {f'{i}.{j}' for i, j in self._last_blocks(gone)}
        return {
            size: {**sizes, size: n - self.step(size)}
            for size, n in sizes.items()
            if not (kind_of(size) == 'hidden' and size.partition('.')[2] in gone)
            and not (kind_of(size) == 'block' and size.partition('.')[2] in last)
            and not self.fixed & {size, kind_of(size)}
            and n - self.step(size) >= self.least(size)
        }

    def _last_blocks(self, gone: Collection[str]) -> Iterator[tuple[int, int]]:
        """Yield the blocks that are the only ones of their stage."""
        for i, depth in enumerate(self.start['depths']):
            left = [j for j in range(depth) if f'{i}.{j}' not in gone]
            if len(left) == 1:
                yield i, left[0]

    def smallest(self) -> dict[str, Any]:
        """Return the arch from which nothing more can be removed."""
        sizes, todo = sizes_of(self.family, self.start), True
        while todo:
            todo = False
            for size in reversed(list(sizes)):  # the blocks that stay are the first ones, which have no attention
                while size in self.actions(sizes):
                    sizes, todo = self.actions(sizes)[size], True
        return self.arch(sizes)

    def arch(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return the explicit arch with these sizes."""
        return arch_with(self.family, self.start, sizes)
