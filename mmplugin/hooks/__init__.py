"""Hooks for mmengine's runner, registered in its root ``HOOKS``."""

from mmplugin.hooks.freeze_norm import FreezeNormHook

__all__ = ['FreezeNormHook']
