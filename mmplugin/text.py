"""Short texts for messages."""

from collections.abc import Iterable


def some(values: Iterable, count: int = 3) -> str:
    """The first few values, and how many there are if that is not all of them."""
    values = list(values)
    text = ', '.join(str(value) for value in values[:count])
    return text if len(values) <= count else f'{text}, ... ({len(values)} in total)'


def duration(seconds: float) -> str:
    """A duration as 45s, 12m05s or 3h07m."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'
