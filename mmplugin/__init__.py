"""Fast small vision transformers for OpenMMLab. ``import mmplugin`` registers all backbones, hooks, metrics, etc."""

from mmplugin import cpu_threads, stack

if stack.is_command():
    cpu_threads.set_short_spin()  # before the next imports load torch

try:
    from mmplugin import backbones, ops, registration
except ImportError as error:
    stack.defer_import_error(error)

__version__ = '1.0.0.dev0'
__all__ = ['__version__', 'backbones']

if stack.IMPORT_ERROR is None:
    ops.install()
    registration.register_parts()
