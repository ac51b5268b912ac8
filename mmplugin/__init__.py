"""Fast small vision transformers for OpenMMLab. ``import mmplugin`` registers all backbones, hooks, metrics, etc."""

from mmplugin import ops, stack

try:
    from mmplugin import backbones, registration
except ImportError as error:
    stack.defer_import_error(error)

__version__ = '1.0.0.dev0'
__all__ = ['__version__', 'backbones']

if stack.IMPORT_ERROR is None:
    ops.install()
    registration.register_parts()
