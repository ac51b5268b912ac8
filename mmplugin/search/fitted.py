"""Two models of the time of a part: from measured parts, or from the times of whole networks."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from mmplugin.errors import UserError
from mmplugin.search.costs import cost
from mmplugin.search.nnls import nonnegative_least_squares
from mmplugin.search.parts import Part

# Pairs of sizes whose products the multiply-adds of a part need.
PRODUCTS: dict[str, tuple[tuple[int, int], ...]] = {
    'stem': ((0, 1), (1, 2), (2, 3)),
    'downsample': ((0, 1),),
    'attention_downsample': ((0, 1),),
    'pool': ((0, 1),),
    'ffn': ((0, 1),),
    'attention': ((0, 1), (0, 2)),
    'window_attention': ((0, 0), (0, 2), (1, 2), (2, 3)),
    'merge': ((0, 1), (1, 1), (1, 2)),
}


def features(part: Part) -> list[float]:
    """Return 1, the sizes of a part, and the products that its multiply-adds are linear in."""
    sizes = part.sizes
    found = [1.0, *map(float, sizes)]
    found += [float(sizes[i] * sizes[j]) for i, j in PRODUCTS[part.kind] if max(i, j) < len(sizes)]
    if part.kind == 'window_attention':
        width, heads = sizes[:2]
        found.append(width * width / heads)  # each head projects its own share of the channels
    if part.kind == 'merge':
        found += [sizes[1] // 4, sizes[1] * (sizes[1] // 4)]  # squeeze and excitation
    return found


class InSituModel:
    """The time of a part from measured parts of its kind and stage.

    A measured part takes its own time. Between them, time follows a fit that is linear in ``features`` with
    coefficients of 0 and more, plus the residuals of the measured parts, weighted by inverse squared distance.

    Args:
        entries: Milliseconds of each measured part.
    """

    def __init__(self, entries: Mapping[Part, float]):
        self.entries = dict(entries)
        self.groups: dict[tuple[str, int], _Group] = {}
        for key in {(part.kind, part.stage) for part in entries}:
            self.groups[key] = _Group({part: ms for part, ms in entries.items() if (part.kind, part.stage) == key})

    def __call__(self, part: Part) -> float:
        """Return the milliseconds of a part."""
        if part in self.entries:
            return self.entries[part]
        group = self.groups.get((part.kind, part.stage))
        if group is None:
            known = ', '.join(f'{kind} in stage {stage + 1}' for kind, stage in sorted(self.groups))
            raise UserError(f'the latency table has no times of {part.kind} in stage {part.stage + 1}; it has {known}')
        return group(part)


class _Group:
    """Measured parts of one kind and stage."""

    def __init__(self, entries: Mapping[Part, float]):
        self.parts, self.times = list(entries), np.array(list(entries.values()))
        self.sizes = np.array([part.sizes for part in self.parts], dtype=float)
        self.scale = np.maximum(np.ptp(self.sizes, axis=0), 1.0)

    @cached_property
    def coefficients(self) -> np.ndarray:
        """Coefficients of the features, fitted to relative errors."""
        rows = np.array([features(part) for part in self.parts])
        return nonnegative_least_squares(rows / self.times[:, None], np.ones(len(rows)))

    @cached_property
    def residuals(self) -> np.ndarray:
        """Measured times minus the fit."""
        return self.times - np.array([features(part) for part in self.parts]) @ self.coefficients

    def __call__(self, part: Part) -> float:
        distance = (((self.sizes - part.sizes) / self.scale) ** 2).sum(1)
        weights = 1 / np.maximum(distance, 1e-12)
        time = np.array(features(part)) @ self.coefficients + weights @ self.residuals / weights.sum()
        return max(float(time), 0.0)


class FittedModel:
    """The time of a part from its multiply-adds and bytes, with coefficients of 0 and more for each kind of part.

    Args:
        family: 'v1', 'v2' or 'evit'.
        size: Height and width of the images.
        batch: Images.
        coefficients: For each kind: milliseconds of a part, of a multiply-add, and of a byte.
    """

    def __init__(self, family: str, size: Sequence[int], batch: int, coefficients: Mapping[str, Sequence[float]]):
        self.family, self.size, self.batch, self.coefficients = family, size, batch, dict(coefficients)

    @classmethod
    def fit(
        cls, family: str, size: Sequence[int], batch: int, networks: Sequence[Sequence[Part]], times: Sequence[float]
    ) -> 'FittedModel':
        """Fit the coefficients to the times (ms) of whole networks, each given by its parts."""
        kinds = sorted({part.kind for parts in networks for part in parts})
        model = cls(family, size, batch, {})
        rows = np.zeros((len(networks), len(kinds), 3))
        for i, parts in enumerate(networks):
            for part in parts:
                rows[i, kinds.index(part.kind)] += model._terms(part)
        matrix = rows.reshape(len(networks), -1) / np.array(times)[:, None]
        found = nonnegative_least_squares(matrix, np.ones(len(networks))).reshape(-1, 3)
        return cls(family, size, batch, {kind: row.tolist() for kind, row in zip(kinds, found, strict=True)})

    def __call__(self, part: Part) -> float:
        """Return the milliseconds of a part."""
        if part.kind not in self.coefficients:
            known = ', '.join(sorted(self.coefficients))
            raise UserError(f'the latency table has no coefficients of {part.kind}; it has those of {known}')
        return float(self._terms(part) @ np.array(self.coefficients[part.kind]))

    def _terms(self, part: Part) -> np.ndarray:
        return np.array([1.0, *cost(self.family, part, self.size, self.batch)])
