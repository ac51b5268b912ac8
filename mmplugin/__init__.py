"""Fast small vision transformers for OpenMMLab. ``import mmplugin`` registers all backbones, hooks, metrics, etc."""

from typing import Any

from mmplugin import cpu_threads, stack

if stack.is_command():
    cpu_threads.set_short_spin()  # before the next imports load torch

try:
    from mmplugin import backbones, ops, registration
except ImportError as error:
    stack.defer_import_error(error)

__version__ = '1.0.0.dev0'
__all__ = ['Predictor', '__version__', 'backbones']

if stack.IMPORT_ERROR is None:
    ops.install()
    registration.register_parts()


def __getattr__(name: str) -> Any:
    """Import ``Predictor`` on first use: it needs mmdet or mmseg, which take seconds."""
    if name == 'Predictor':
        from mmplugin.engine.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'mmplugin' has no attribute '{name}'")
