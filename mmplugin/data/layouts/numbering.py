"""Which stored value of a mask means which class. Nothing is assumed that could be wrong: a doubt is an error."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mmplugin.errors import UserError
from mmplugin.text import some

IGNORED = 255  # label of pixels that count neither in the loss nor in the metrics


def show_value(value: int, color: bool) -> str:
    """Return a value as a person writes it: ``7``, or ``#ff8000`` for a color."""
    return f'#{value:06x}' if color else str(value)


class AmbiguousError(UserError):
    """Masks whose values do not tell which class each of them is."""


@dataclass(frozen=True)
class Numbering:
    """The meaning of the values in masks.

    Args:
        classes: Class names in the order of their labels.
        labels: Label by stored value, for all values that occur; ``IGNORED`` for unlabelled pixels.
    """

    classes: tuple[str, ...]
    labels: Mapping[int, int]

    @property
    def is_identity(self) -> bool:
        """Whether the values are the labels."""
        return all(value == label for value, label in self.labels.items())

    @property
    def reduces_zero(self) -> bool:
        """Whether 0 is unlabelled and k is class k - 1, which mmseg calls ``reduce_zero_label``."""
        return all(label == (value - 1 if 0 < value < IGNORED else IGNORED) for value, label in self.labels.items())


def number_classes(seen: Sequence[int], classes: Sequence[str], unlabelled: Sequence[int] = ()) -> Numbering:
    """Assign class names to the values in masks, or raise an ``AmbiguousError``.

    Without ``unlabelled``, names and values must correspond one to one: N names, and either 0 to N - 1 or 1 to N, all
    of which occur. 255 next to two or more classes is unlabelled, by a convention of the field.

    With ``unlabelled``, the names are numbered from 0, or from 1 if 0 is unlabelled, and classes may be absent.

    Args:
        seen: All values that occur.
        classes: Class names in the order of their values.
        unlabelled: Values of unlabelled pixels, as the user states them.
    """
    values = sorted(set(seen) - {*unlabelled, IGNORED})
    never = [value for value in unlabelled if value not in seen and value not in (0, IGNORED)]
    if never:
        raise UserError(f'--unlabelled {some(never)}: no mask has this value; the values are {some(sorted(seen), 12)}')
    if not values:
        raise AmbiguousError(f'no value is left for a class: the masks have only {some(sorted(seen), 12)}')
    if not unlabelled and len(classes) == 1 and IGNORED in seen:
        raise AmbiguousError('one class name, but 255 may be unlabelled or the class')
    starts = [1] if 0 in unlabelled else [0] if 0 in values else [0, 1]
    numbers = [_numbers(first, len(classes), unlabelled) for first in starts]
    exact = [found for found in numbers if found == values]
    # A class may be absent if the user says what is unlabelled, and if that leaves no gap between the classes.
    with_absent = [
        found
        for found in numbers
        if unlabelled and found == list(range(found[0], found[-1] + 1)) and set(values) <= set(found)
    ]
    fitting = exact or with_absent
    if len(fitting) != 1:
        raise AmbiguousError(f'{len(classes)} class names for {len(values)} values, {values[0]} to {values[-1]}')
    labels = {value: i for i, value in enumerate(fitting[0]) if value in values}
    return Numbering(tuple(classes), labels | dict.fromkeys(sorted(set(seen) - set(values)), IGNORED))


def _numbers(first: int, count: int, unlabelled: Sequence[int]) -> list[int]:
    """Return the values of ``count`` classes from ``first`` on, without the unlabelled ones."""
    found = [value for value in range(first, IGNORED) if value not in unlabelled][:count]
    if len(found) < count:
        raise UserError(f'{count} classes; a mask has at most {len(found)} and {IGNORED} for unlabelled pixels')
    return found


def number_explicitly(
    seen: Sequence[int], values: Mapping[int, str], unlabelled: Sequence[int] = (), color: bool = False
) -> Numbering:
    """Assign the class names that the user or a table states for each value.

    Args:
        seen: All values that occur.
        values: Class name by value; several values may have the same name.
        unlabelled: Values of unlabelled pixels. 255 is unlabelled unless it has a name.
        color: Whether the values are colors, of which 255 is one.
    """
    unlabelled = unlabelled if color else [*unlabelled, *({IGNORED} - values.keys())]
    classes = tuple(dict.fromkeys(name for value, name in values.items() if value not in unlabelled))
    unknown = [value for value in seen if value not in values and value not in unlabelled]
    if unknown:
        shown = some((show_value(value, color) for value in unknown), 12)
        raise AmbiguousError(f'values without a name: {shown}')
    named = {value: classes.index(name) for value, name in values.items() if name in classes}
    return Numbering(classes, {v: IGNORED if v in unlabelled else named.get(v, IGNORED) for v in seen})


def drop_classes(numbering: Numbering, names: Sequence[str]) -> Numbering:
    """Make classes unlabelled; the labels of the others move up."""
    classes = tuple(name for name in numbering.classes if name not in names)
    new = {i: classes.index(name) for i, name in enumerate(numbering.classes) if name in classes} | {IGNORED: IGNORED}
    return Numbering(classes, {value: new.get(label, IGNORED) for value, label in numbering.labels.items()})


def suggestions(seen: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Return the options that make a numbering certain, each with what it means."""
    found = []
    for value in sorted({0, len(classes), max(seen, default=0), IGNORED}):
        try:
            numbering = number_classes(seen, classes, [value])
        except UserError:
            continue
        found.append(f'--unlabelled {value:<8} {_ends(numbering)}')
    with suppress(UserError):
        found.append(f'--background NAME     {_ends(number_classes(seen, ["NAME", *classes]))}')
    numbered = ','.join(f'{name}={value}' for name, value in zip(classes, sorted(seen), strict=False))
    return [*found, f'--classes {numbered}  (adapt the numbers)']


def _ends(numbering: Numbering) -> str:
    named = {value: numbering.classes[label] for value, label in numbering.labels.items() if label != IGNORED}
    ignored = [str(value) for value, label in numbering.labels.items() if label == IGNORED]
    first, last = min(named), max(named)
    return f'{first} is {named[first]!r}, ..., {last} is {named[last]!r}' + (
        f', {" and ".join(ignored)} unlabelled' if ignored else ''
    )
