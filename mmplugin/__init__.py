"""Fast small vision transformers for OpenMMLab. Importing this package registers everything; nothing else is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmplugin import ops, stack

try:
    from mmengine.registry import HOOKS, MODELS, Registry

    from mmplugin import backbones
except ImportError as error:
    stack.let_commands_in(error)

__version__ = '1.0.0'
__all__ = ['__version__', 'backbones']


def _register_on_demand(registry: Registry, name: str, module: str) -> None:
    """Registers what builds ``name`` after importing ``module``, which then registers the class itself in its place.

    Hooks and necks derive from classes whose import takes a second; who only builds a backbone need not wait for it.
    """

    def build(**settings: Any) -> Any:
        return getattr(import_module(module), name)(**settings)

    registry.register_module(name=name, module=build)


if stack.IMPORT_ERROR is None:
    ops.install()
    _register_on_demand(HOOKS, 'FreezeNormHook', 'mmplugin.hooks')
    _register_on_demand(MODELS, 'UpsampledFPN', 'mmplugin.necks')
