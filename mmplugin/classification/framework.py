"""Import of mmpretrain, an optional package."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType

from mmplugin import stack
from mmplugin.errors import UserError

STAND_INS = (
    'torchvision', 'torchvision.transforms', 'torchvision.transforms.functional',
    'torchvision.transforms.transforms', 'torchvision.ops', 'torchvision.ops.boxes',
)  # fmt: skip
REGISTERED = ('models', 'datasets', 'evaluation', 'visualization', 'engine')


def import_mmpretrain(name: str = 'mmpretrain.models') -> ModuleType:
    """Import a module of mmpretrain.

    Raises:
        UserError: If mmpretrain is not installed, or cannot be imported.
    """
    if importlib.util.find_spec('mmpretrain') is None:
        raise UserError(
            'classification configs require mmpretrain, which is not installed: pip install '
            f'{"==".join(stack.current().mmpretrain)}'
        )
    try:
        with torchvision_or_stand_in():
            for part in REGISTERED:  # the registries would import them later, without the stand-in
                stack.import_quietly(f'mmpretrain.{part}')
            return stack.import_quietly(name)
    except (ImportError, RuntimeError, AssertionError) as error:
        raise UserError(
            f'{name} cannot be imported ({error}); install the tested version: pip install '
            f'{"==".join(stack.current().mmpretrain)}'
        ) from error


@contextmanager
def torchvision_or_stand_in() -> Iterator[None]:
    """Provide empty modules in place of torchvision while mmpretrain is imported, if torchvision is not installed.

    mmpretrain imports torchvision for transforms that no config of mmplugin uses. Many environments do not have it,
    because PyPI's torchvision cannot be imported beside a CPU-only torch. The modules are removed afterwards, so that
    other libraries still find torchvision missing.
    """
    if 'torchvision' in sys.modules or importlib.util.find_spec('torchvision') is not None:
        yield
        return
    modules = {name: ModuleType(name) for name in STAND_INS}
    for name, module in modules.items():
        parent, _, child = name.rpartition('.')
        if parent:
            setattr(modules[parent], child, module)
    InterpolationMode = Enum('InterpolationMode', ['NEAREST', 'BILINEAR', 'BICUBIC', 'BOX', 'HAMMING', 'LANCZOS'])
    modules['torchvision.transforms.transforms'].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    # A base class of a transform for masked autoencoders.
    modules['torchvision.transforms'].RandomResizedCrop = type('RandomResizedCrop', (), {})  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in STAND_INS:
            sys.modules.pop(name, None)
