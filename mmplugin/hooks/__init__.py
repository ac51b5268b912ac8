"""Hooks for mmengine's runner, registered in its root ``HOOKS``."""

from .freeze_norm import FreezeNormHook

__all__ = ['FreezeNormHook']
