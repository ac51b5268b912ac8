"""From a trained config to a file that runs without PyTorch, checked against PyTorch.

Nothing here is imported unless a command asks for it; the packages of the runtimes are imported where they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmplugin.deploy.backbones import FORMATS, export_backbone, open_backbone, require_runtime

__all__ = ['FORMATS', 'export_backbone', 'open_backbone', 'require_runtime']


def __getattr__(name: str) -> Any:
    """Import the functions for backbones on first use."""
    if name in __all__:
        from mmplugin.deploy import backbones

        return getattr(backbones, name)
    raise AttributeError(f"module 'mmplugin.deploy' has no attribute '{name}'")
