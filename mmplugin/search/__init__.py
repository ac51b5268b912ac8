"""Find the network that fits a latency budget on the user's machine.

``from mmplugin.search import Budget, LatencyTable, Space, search, subnet``. Names are imported on first use.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    'Budget': 'budget',
    'Figures': 'budget',
    'LatencyTable': 'latency',
    'Space': 'space',
    'search': 'methods',
    'subnet': 'subnet',
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name in _PLACES:
        return getattr(import_module(f'{__name__}.{_PLACES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
