"""Networks to time: a balanced set for a table, and random ones to check it.

A dimension has three levels. The levels follow from an orthogonal array of 27 rows: each column has each level 9 times,
each two columns each pair of levels 3 times. So each pair of widths of neighboring stages, and each width with each
number of hidden channels, occurs at least 3 times.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from mmplugin.backbones import FAMILIES
from mmplugin.search.parts import explicit_arch

GRANULE = 8  # channels
KERNELS = ((7, 5, 3, 3), (5, 5, 5, 5))  # of the published networks of evit
HEADS = (2, 3, 4)
LEVELS = ((0.0, 0.5, 1.0), (0.25, 0.75, 1.0))  # of hidden channels, those of every second block are others
DEPTHS = {'v1': (2, 2, 2, 3), 'v2': (2, 2, 3, 3), 'evit': (1, 2, 2)}  # of the networks of a table
ATTENTION_BLOCKS = (2, 2)  # in stages 3 and 4, where the family has attention there

# Columns of the array as linear forms of the row (a, b, c), modulo 3. No two are multiples of each other.
WIDTHS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))
HIDDEN = ((1, 2, 0), (0, 1, 2), (1, 0, 2), (1, 1, 2))
KEYS, HEAD_COUNTS = (1, 2, 1), (1, 2, 2)
MERGE = ((1, 1, 0), (0, 1, 1))  # sums of the widths' columns, so that nine triples occur, three times each


class Limits(NamedTuple):
    """Range of one dimension: lowest and highest value, and the step between allowed values."""

    low: int
    high: int
    step: int = GRANULE

    @classmethod
    def below(cls, high: int, step: int = GRANULE) -> 'Limits':
        """Return the range from half of a value to the value itself."""
        step = step if high % step == 0 else 1
        return cls(min(high, -(-high // (2 * step)) * step), high, step)

    def at(self, fraction: float) -> int:
        """Return the allowed value nearest to a fraction of the way from the lowest to the highest value."""
        return self.round(self.low + fraction * (self.high - self.low))

    def round(self, value: float) -> int:
        """Return the allowed value nearest to ``value``."""
        steps = round((min(max(value, self.low), self.high) - self.low) / self.step)
        return min(self.high, self.low + steps * self.step)


Choose = Callable[[tuple[int, ...], Limits, int], int]  # column, range, shift of the level -> value


def balanced_archs(family: str, around: dict | None) -> list[dict[str, Any]]:
    """Return the 27 networks of a table.

    Args:
        family: 'v1', 'v2' or 'evit'.
        around: Explicit arch whose sub-networks will be asked for; None stands for the whole family.
    """
    archs = []
    for row in itertools.product(range(3), repeat=3):

        def choose(column: tuple[int, ...], limits: Limits, shift: int, row: tuple[int, ...] = row) -> int:
            level = (sum(a * b for a, b in zip(column, row, strict=True)) + shift) % 3
            return limits.at(LEVELS[shift % 2][level])

        archs.append(_arch(family, around, DEPTHS[family], choose))
    return archs


def random_archs(family: str, around: dict | None, count: int, seed: int) -> list[dict[str, Any]]:
    """Return networks whose sizes are any of the allowed values; the first is ``around`` itself, if that is given."""
    rng = random.Random(seed)

    def choose(column: tuple[int, ...], limits: Limits, shift: int) -> int:
        return limits.round(rng.uniform(limits.low - limits.step / 2, limits.high + limits.step / 2))

    archs = [around] if around else []
    while len(archs) < count:
        depths = [rng.randint(low, high) for low, high in _depths(family, around)]
        archs.append(_arch(family, around, depths, choose))
    return archs


def _depths(family: str, around: dict | None) -> list[tuple[int, int]]:
    if around:
        return [(-(-depth // 2), depth) for depth in around['depths']]
    of_archs = zip(*(arch['depths'] for arch in FAMILIES[family].ARCHS.values()), strict=True)
    return [(min(depths), max(depths)) for depths in of_archs]


def _arch(family: str, around: dict | None, depths: Any, choose: Choose) -> dict[str, Any]:
    heads = around['heads'] if around and family == 'evit' else None
    limits = _width_limits(family, around)
    widths = tuple(choose(WIDTHS[i], limit, 0) for i, limit in enumerate(limits))

    def hidden(stage: int, block: int) -> int:
        return choose(HIDDEN[stage], _hidden_limits(family, around, stage, widths[stage]), block)

    arch: dict[str, Any] = dict(
        widths=widths,
        depths=tuple(depths),
        hidden=tuple(tuple(hidden(i, j) for j in range(depth)) for i, depth in enumerate(depths)),
    )
    if family == 'evit':
        return explicit_arch(family, dict(arch, **_evit_keys(around, heads, widths, hidden, choose)))
    attention = tuple(min(count, depth) for count, depth in zip(ATTENTION_BLOCKS, depths[-2:], strict=True))
    arch['attention_blocks'] = attention if family == 'v2' else attention[-1]
    if around:
        level = choose(KEYS, Limits(0, 2, 1), 0)  # nothing, the keys or the values are smaller
        for key, smaller in (('key_dim', 1), ('value_dim', 2)):
            limit = Limits.below(around[key])
            arch[key] = limit.low if level == smaller else limit.high
    return explicit_arch(family, arch)


def _width_limits(family: str, around: dict | None) -> list[Limits]:
    least = FAMILIES[family].MIN_STEM
    if around:
        heads = around['heads'] if family == 'evit' else [1] * len(around['widths'])
        return [_around_width(width, count, least) for width, count in zip(around['widths'], heads, strict=True)]
    step = 24 if family == 'evit' else GRANULE  # any of ``HEADS`` divides 24
    limits = []
    for widths in zip(*(arch['widths'] for arch in FAMILIES[family].ARCHS.values()), strict=True):
        high = max(widths) // step * step
        limits.append(Limits(min(min(widths) // step, -(-high // (2 * step))) * step, high, step))
    return limits


def _around_width(width: int, heads: int, least: int) -> Limits:
    """Return the range from half a width, of multiples of the number of heads and, if possible, of ``GRANULE``."""
    step = heads * GRANULE if width % (heads * GRANULE) == 0 else heads
    low = max(-(-width // (2 * step)) * step, -(-least // step) * step)
    return Limits(min(low, width), width, step)


def _hidden_limits(family: str, around: dict | None, stage: int, width: int) -> Limits:
    if around and around['hidden'][stage]:
        return Limits.below(max(around['hidden'][stage]))
    return Limits.below(FAMILIES[family].RATIO * width)


def _evit_keys(
    around: dict | None, heads: Any, widths: tuple[int, ...], hidden: Callable[[int, int], int], choose: Choose
) -> dict[str, Any]:
    stages = range(len(widths))
    keys: dict[str, Any] = dict(
        downsample_hidden=tuple((hidden(i - 1, 1), hidden(i, 2)) for i in stages[1:]),
    )
    if around is None:
        level = choose(HEAD_COUNTS, Limits(0, 2, 1), 0)
        return dict(keys, heads=tuple(HEADS[(level + i) % 3] for i in stages), kernels=KERNELS[level % 2])
    merge_hidden = [choose(MERGE[i], _merge_limits(around, i), 0) for i in stages[:-1]]
    return dict(
        keys,
        heads=heads,
        kernels=around['kernels'],
        key_dims=tuple(choose(KEYS, Limits.below(around['key_dims'][i]), 2 * i) for i in stages),
        merge_ratio=tuple(merge_hidden[i] / widths[i] for i in stages[:-1]),
    )


def _merge_limits(around: dict, stage: int) -> Limits:
    limits = Limits.below(round(around['merge_ratio'][stage] * around['widths'][stage]))
    return limits._replace(low=max(limits.low, 4))  # the squeeze has a quarter of the channels
