"""Checks of an ``arch`` dict: all values at once, and one message that lists every problem."""

import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from mmplugin.errors import UserError

MOST_CHANNELS = 65536
MOST_BLOCKS = 1024  # of a stage


def arch_name(arch: str | Mapping[str, Any]) -> str:
    """Return an arch in one line, for messages: its name, or what a dict consists of."""
    if isinstance(arch, str):
        return arch
    keys = [key for key in ('widths', 'depths', 'heads', 'attention_blocks') if key in arch]
    return 'custom: ' + ', '.join(f'{key.replace("_", " ")} {_spaced(arch[key])}' for key in keys)


def _spaced(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def is_integer(value: Any, least: int, most: int) -> bool:
    """Return whether a value is an integer of this range. Booleans and floats such as 32.0 are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_listed(value: Any, count: int | None = None) -> bool:
    """Return whether a value is a list or tuple with ``count`` entries (None: any number)."""
    return isinstance(value, list | tuple) and count in (None, len(value))


def is_positive(value: Any) -> bool:
    """Return whether a value is a finite number above 0."""
    number: Any = value  # compared without a conversion: an integer of 400 digits has no float
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < number <= sys.float_info.max


def whole_product(ratio: Any, width: int) -> int | None:
    """Return ``ratio * width`` if that is a whole number of channels, else None."""
    if not is_positive(ratio):
        return None
    channels = round(float(ratio) * width)
    return channels if 1 <= channels <= MOST_CHANNELS and abs(float(ratio) * width - channels) < 1e-3 else None


class ArchChecker:
    """Collects the problems of one arch dict.

    The methods return the value if it can be used by later checks, and None otherwise.

    Args:
        owner: Name of the class, for the message.
        arch: The dict.
        stages: Number of stages of the family.
    """

    def __init__(self, owner: str, arch: Mapping[str, Any], stages: int):
        self.owner, self.arch, self.stages = owner, arch, stages
        self.problems: list[str] = []

    def refuse(self, place: str, value: Any, allowed: str) -> None:
        """Note a problem."""
        self.problems.append(f'{place} is {value!r:.100}; allowed: {allowed}')

    def raise_if_any(self) -> None:
        """Raise one ``UserError`` for all problems."""
        if self.problems:
            raise UserError(f'{self.owner}: this arch cannot be built: {"; ".join(self.problems)}')

    def keys(self, required: Sequence[str], optional: Sequence[str]) -> None:
        """Check the keys. Without the required ones, nothing else can be checked."""
        missing = [key for key in required if key not in self.arch]
        unknown = [key for key in self.arch if key not in (*required, *optional)]
        if missing or unknown:
            self.problems.append(
                f'arch as a dict lacks [{", ".join(sorted(missing))}] and has the unknown keys '
                f'[{", ".join(sorted(map(str, unknown)))}]; it needs {", ".join(required)}, and may have '
                f'{", ".join(optional)}'
            )
        if missing:
            self.raise_if_any()

    def integer(self, key: str, least: int, most: int) -> int | None:
        """Check one integer."""
        if key not in self.arch:
            return None
        value = self.arch[key]
        if is_integer(value, least, most):
            return int(value)
        self.refuse(key, value, f'an integer from {least} to {most}')
        return None

    def integers(self, key: str, least: int, most: int, count: int | None = None) -> tuple[int, ...] | None:
        """Check a list of integers, one for each stage by default."""
        if key not in self.arch:
            return None
        count, values = self.stages if count is None else count, self.arch[key]
        if not is_listed(values, count):
            self.refuse(key, values, f'{count} integers from {least} to {most}, one for each stage')
            return None
        bad = [i for i, value in enumerate(values) if not is_integer(value, least, most)]
        for i in bad:
            self.refuse(f'{key}, stage {i + 1},', values[i], f'integers from {least} to {most}')
        return None if bad else tuple(map(int, values))

    def hidden(self, widths: Sequence[int] | None, depths: Sequence[int] | None) -> None:
        """Check ``hidden`` or ``ratios``: for each stage, a number for each block."""
        given = [key for key in ('hidden', 'ratios') if key in self.arch]
        if len(given) == 2:
            self.problems.append('hidden and ratios are both there; allowed: one of them')
        for key in given:
            stages = self.arch[key]
            if not is_listed(stages, self.stages):
                self.refuse(key, stages, f'{self.stages} lists, one for each stage, with a number for each block')
                continue
            for i, of_stage in enumerate(stages):
                width, depth = (None if values is None else values[i] for values in (widths, depths))
                self._hidden_of_stage(key, i, of_stage, width, depth)

    def _hidden_of_stage(self, key: str, stage: int, values: Any, width: int | None, depth: int | None) -> None:
        if not is_listed(values, depth):
            blocks = 'a number for each block' if depth is None else f'a list of {depth}, one number for each block'
            self.refuse(f'{key}, stage {stage + 1},', values, blocks)
            return
        for j, value in enumerate(values):
            place = f'{key}, stage {stage + 1}, block {j + 1},'
            if key == 'hidden' and not is_integer(value, 1, MOST_CHANNELS):
                self.refuse(place, value, f'integers from 1 to {MOST_CHANNELS}')
            elif key == 'ratios' and width and whole_product(value, width) is None:
                self.refuse(place, value, f'numbers above 0 whose product with the width {width} is a whole number')
            elif key == 'ratios' and not is_positive(value):
                self.refuse(place, value, 'numbers above 0')


def hidden_channels(arch: Mapping[str, Any], default_ratio: int) -> tuple[tuple[int, ...], ...]:
    """Return the hidden channels of the feed-forward network of each block, by stage, of an arch that was checked."""
    if 'hidden' in arch:
        return tuple(tuple(map(int, of_stage)) for of_stage in arch['hidden'])
    ratios = arch.get('ratios') or [[default_ratio] * int(depth) for depth in arch['depths']]
    return tuple(
        tuple(round(float(ratio) * int(width)) for ratio in of_stage)
        for of_stage, width in zip(ratios, arch['widths'], strict=True)
    )
