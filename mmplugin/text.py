"""Short texts for messages."""

import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST = 300  # characters of one value in a message


def some(values: Iterable, count: int = 3) -> str:
    """List the first few values, and the number of all values if there are more."""
    values = list(values)
    text = ', '.join(map(_short, values[:count]))
    return text if len(values) <= count else f'{text}, ... ({len(values)} in total)'


def _short(value: Any) -> str:
    """Return the text of a value. A tuple from a file may hold the same long text many thousand times."""
    text = reprlib.repr(value) if isinstance(value, tuple | frozenset) else str(value)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def duration(seconds: float) -> str:
    """Format a duration as 45s, 12m05s or 3h07m."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'


def printable(text: str, keep: str = '') -> str:
    """Replace control characters, which a terminal would obey, by question marks.

    Args:
        text: Text that may come from a file.
        keep: Control characters to keep.
    """
    return ''.join(character if character.isprintable() or character in keep else '?' for character in text)
