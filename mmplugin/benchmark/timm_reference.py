"""timm, imported beside a CPU-only torch: a soft dependency, to compare with."""

import os
import sys
from importlib import import_module
from types import ModuleType

import torch


def import_timm() -> ModuleType:
    """Imports timm.

    torchvision lies in a folder of its own (`make setup` puts it there), because mmengine's Runner imports it wherever
    it finds it. Beside a CPU-only torch it cannot be imported just like that: it registers fake kernels for operators
    that its library could not load, and stops there. The registration is skipped for its names only; timm's models use
    none of those operators.

    Raises:
        ImportError: If timm or torchvision are not there.
    """
    if 'timm' in sys.modules:
        return sys.modules['timm']
    register_fake, path = torch.library.register_fake, sys.path

    def skip_torchvision(op, *args, **kwargs):
        if isinstance(op, str) and op.startswith('torchvision::'):
            return lambda function: function
        return register_fake(op, *args, **kwargs)

    torch.library.register_fake = skip_torchvision
    sys.path = [*path, os.path.join(sys.prefix, 'oracle')]
    try:
        return import_module('timm')
    finally:
        torch.library.register_fake, sys.path = register_fake, path
