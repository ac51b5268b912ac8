"""The space of the joint search of EfficientFormerV2 (Li et al., ICCV 2023, Section 4.2.2), for all three families.

A state names, for the blocks of the largest network: ``width.STAGE``, ``ratio.STAGE.BLOCK`` (the expansion of a
feed-forward network), ``block.STAGE.BLOCK`` (1 if it is there), and in V2 ``attention.STAGE``: so many of the last
blocks of the largest network may have attention.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError

from .greedy import State
from .slices import Blocks, attention_counts, default_blocks
from .space import arch_with, kind_of, sizes_of

KINDS = ('width', 'ratio', 'block', 'attention')
DIVISOR = 8  # of widths and hidden channels; the paper's Table 9 has widths that no larger number divides
LEAST_DEPTHS = {'v1': (1, 1, 2, 2), 'v2': (1, 1, 2, 2), 'evit': (1, 1, 1)}
RATIOS = {'v1': (1.0, 2.0), 'v2': (1.0, 2.0), 'evit': (0.5, 1.0)}  # step and least expansion


def rounded(value: float) -> int:
    """Return the multiple of ``DIVISOR`` that is nearest to a number of channels, at least one."""
    return max(DIVISOR, int(value / DIVISOR + 0.5) * DIVISOR)


@dataclass(frozen=True)
class ElasticSpace:
    """Networks with fewer blocks, narrower stages and smaller expansions than the largest one.

    Args:
        family: 'v1', 'v2' or 'evit'.
        start: The largest arch, in explicit form.
        fixed: Sizes that stay as they are, by name or by kind.
        ratio_step: Step between expansions.
        least_ratio: Smallest expansion.
    """

    family: str
    start: dict[str, Any]
    fixed: frozenset[str]
    ratio_step: float
    least_ratio: float

    @classmethod
    def below(
        cls,
        family: str,
        arch: str | dict,
        fixed: Sequence[str] = (),
        ratio_step: float | None = None,
        least_ratio: float | None = None,
    ) -> 'ElasticSpace':
        """Return the space below an arch, by name or as a dict."""
        step, least = RATIOS[family]
        explicit = FAMILIES[family].explicit(arch)
        space = cls(family, explicit, frozenset(fixed), ratio_step or step, least_ratio or least)
        unknown = sorted(space.fixed - set(KINDS) - set(space.largest()))
        if unknown:
            raise UserError(f'fixed is {unknown}; allowed: {", ".join(KINDS)}, or names of sizes such as width.0')
        return space

    def largest(self) -> State:
        """Return the state of the largest network."""
        start = self.start
        state: State = {f'width.{i}': width for i, width in enumerate(start['widths'])}
        for i, depth in enumerate(start['depths']):
            state |= {f'ratio.{i}.{j}': float(start['hidden'][i][j] / start['widths'][i]) for j in range(depth)}
            state |= {f'block.{i}.{j}': 1 for j in range(depth)}
        if self.family == 'v2':  # in V1, a block without attention has other weights
            state |= {f'attention.{i + 2}': n for i, n in enumerate(start['attention_blocks']) if n}
        return state

    def levels(self, size: str) -> list[float]:
        """Return the values that a width or an expansion may have, from the largest to the smallest."""
        most = self.largest()[size]
        if self.fixed & {size, kind_of(size)}:
            return [most]
        if kind_of(size) == 'width':
            stage = int(size.split('.')[1])
            step = DIVISOR * (self.start['heads'][stage] if self.family == 'evit' else 1)
            published = min(arch['widths'][stage] for arch in FAMILIES[self.family].ARCHS.values())
            least = max(step, -(-int(most) // (2 * step)) * step)
            least = min(least, published // step * step) if published < most else least
            return [most, *range(int(most - 1) // step * step, least - 1, -step)]
        step_, least_ = Fraction(self.ratio_step), self.least_ratio
        below = (float(n * step_) for n in itertools.count(int(Fraction(most) / step_), -1))
        return [most, *itertools.takewhile(lambda ratio: ratio >= least_, (r for r in below if r < most))]

    def blocks(self, state: Mapping[str, float]) -> list[list[int]]:
        """Return for each stage the blocks of the largest network that are there."""
        return [[j for j in range(depth) if state[f'block.{i}.{j}']] for i, depth in enumerate(self.start['depths'])]

    def sources(self, state: Mapping[str, float]) -> list[list[int]]:
        """Return for each stage the blocks of the supernet that run."""
        return self.blocks(state)

    def arch(self, state: Mapping[str, float]) -> dict[str, Any]:
        """Return the explicit arch of a state."""
        start, sizes = self.start, sizes_of(self.family, self.start)
        widths = [int(state[f'width.{i}']) for i in range(len(start['widths']))]
        for size, most in sizes.items():
            kind, _, place = size.partition('.')
            if kind in ('width', 'block'):
                sizes[size] = int(state[size])
            elif kind in ('hidden', 'downsample', 'merge'):
                stage = int(place.split('.')[0]) + (kind == 'downsample' and place.endswith('.1'))
                before, width = start['widths'][stage], widths[stage]
                ratio = state[f'ratio.{place}'] if kind == 'hidden' else most / before
                unchanged = ratio == most / before and width == before
                sizes[size] = most if unchanged else min(most, rounded(ratio * width))
        if self.family == 'v2':
            counts = tuple(int(state.get(f'attention.{i}', 0)) for i in (2, 3))
            start = dict(start, attention_blocks=counts)
        elif 'attention.3' in state:
            start = dict(start, attention_blocks=int(state['attention.3']))
        return arch_with(self.family, start, sizes)

    def actions(self, state: Mapping[str, float]) -> dict[str, State]:
        """Return the frontier: by name of a size, the state in which it is the next smaller one."""
        found: dict[str, State] = {}
        blocks = self.blocks(state)
        for size, value in state.items():
            kind, stage, *rest = size.split('.')
            i = int(stage)
            if self.fixed & {size, kind}:
                continue
            if kind == 'block':
                if value and len(blocks[i]) > min(LEAST_DEPTHS[self.family][i], self.start['depths'][i]):
                    found[size] = {**state, size: 0}
            elif kind == 'attention':
                with_attention = [j for j in blocks[i] if j >= self.start['depths'][i] - value]
                if with_attention:  # the first one loses it, so that attention stays in the last blocks
                    found[size] = {**state, size: self.start['depths'][i] - with_attention[0] - 1}
            elif kind == 'width' or int(rest[0]) in blocks[i]:
                smaller = [level for level in self.levels(size) if level < value]
                if smaller:
                    found[size] = {**state, size: smaller[0]}
        return found

    def smallest(self) -> State:
        """Return the state from which nothing more can be removed."""
        state = {size: self._least(size) for size in self.largest()}
        for i, depth in enumerate(self.start['depths']):
            if 'block' not in self.fixed:
                free = [j for j in range(depth) if f'block.{i}.{j}' not in self.fixed]
                least = min(LEAST_DEPTHS[self.family][i], depth) - (depth - len(free))
                for j in free[max(0, least) :]:
                    state[f'block.{i}.{j}'] = 0
        return state

    def _least(self, size: str) -> float:
        kind = kind_of(size)
        if kind == 'attention' and not self.fixed & {size, kind}:
            return 0
        return self.levels(size)[-1] if kind in ('width', 'ratio') else self.largest()[size]

    def random(self, rng: random.Random) -> State:
        """Return a state whose sizes are uniform and independent."""
        state = self.largest()
        for size, most in state.items():
            if kind_of(size) in ('width', 'ratio'):
                state[size] = rng.choice(self.levels(size))
            elif kind_of(size) == 'attention' and not self.fixed & {size, 'attention'}:
                state[size] = rng.randint(0, int(most))
        for i, depth in enumerate(self.start['depths']):
            free = [j for j in range(depth) if not self.fixed & {f'block.{i}.{j}', 'block'}]
            least = max(0, min(LEAST_DEPTHS[self.family][i], depth) - (depth - len(free)))
            kept = rng.sample(free, rng.randint(least, len(free))) if free else []
            state |= {f'block.{i}.{j}': int(j in kept) for j in free}
        return state

    def uniform(self, share: float) -> State:
        """Return the state in which widths and depths are this share of the largest, the usual way to scale."""
        state = self.largest()
        for size, most in state.items():
            if kind_of(size) == 'width':
                state[size] = min(self.levels(size), key=lambda level: abs(level - share * most))
        for i, depth in enumerate(self.start['depths']):
            if 'block' not in self.fixed:
                left = max(min(LEAST_DEPTHS[self.family][i], depth), round(share * depth))
                last = min(attention_counts(self.family, self.start)[i], left)
                kept = {*range(left - last), *range(depth - last, depth)}
                state |= {f'block.{i}.{j}': int(j in kept) for j in range(depth)}
        return state

    def kept(self, state: Mapping[str, float]) -> dict[str, tuple[int, int]]:
        """Return for each size of the start, and the blocks of each stage, how much is kept of how much."""
        blocks, arch = self.blocks(state), self.arch(state)
        found = {f'width.{i}': pair for i, pair in enumerate(zip(arch['widths'], self.start['widths'], strict=True))}
        for i, of_stage in enumerate(blocks):
            own = dict(zip(of_stage, arch['hidden'][i], strict=True))
            found |= {f'hidden.{i}.{j}': (own.get(j, 0), n) for j, n in enumerate(self.start['hidden'][i])}
            found[f'block.{i}'] = len(of_stage), self.start['depths'][i]
        counts = zip(attention_counts(self.family, arch), attention_counts(self.family, self.start), strict=True)
        return found | {f'attention.{i}': pair for i, pair in enumerate(counts) if pair[1]}

    def state_of(self, arch: str | dict, blocks: Blocks | None = None) -> State:
        """Return the state of an arch.

        Args:
            arch: Name of a variant, or a dict.
            blocks: For each stage, the blocks of the largest network that it has; see ``subnet``.

        Raises:
            UserError: If the arch is not in this space.
        """
        explicit, state = FAMILIES[self.family].explicit(arch), self.largest()
        depths = zip(explicit['depths'], self.start['depths'], strict=True)
        if all(own <= most for own, most in depths):
            chosen = default_blocks(self.family, self.start, explicit) if blocks is None else blocks
            for i, of_stage in enumerate(chosen):
                state[f'width.{i}'] = explicit['widths'][i]
                state |= {f'block.{i}.{j}': int(j in of_stage) for j in range(self.start['depths'][i])}
                for hidden, j in zip(explicit['hidden'][i], of_stage, strict=True):
                    state[f'ratio.{i}.{j}'] = hidden / explicit['widths'][i]
            for i, count in enumerate(attention_counts(self.family, explicit)):
                if f'attention.{i}' in state:
                    state[f'attention.{i}'] = self.start['depths'][i] - chosen[i][-count] if count else 0
            allowed = all(state[s] in self.levels(s) for s in state if kind_of(s) in ('width', 'ratio'))
            if allowed and self.arch(state) == explicit:
                return state
        raise UserError(f'the arch {explicit} is not in the space below {self.start}')
