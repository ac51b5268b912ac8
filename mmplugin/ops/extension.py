"""The stand-in for `mmcv._ext`, put in place only where mmcv brings no compiled one."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType

from ..errors import UserError

NAME = 'mmcv._ext'
HOW_TO_GET = (
    'Get the compiled operators: `pip install --no-build-isolation onedl-mmcv` with a C++ compiler (about 15 minutes '
    'on two cores; CUDA kernels need nvcc too), or the `mmcv` wheel built for your torch and CUDA.'
)


def _missing(name: str) -> FunctionType:
    def missing(*args, **kwargs):
        raise UserError(
            f'The operator {name!r} of mmcv is not compiled here, and mmplugin.ops has no stand-in for it. {HOW_TO_GET}'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


class _Loader(importlib.abc.Loader):
    """Present so that `mmcv.utils.ext_loader.check_ops_exist` finds what import finds."""

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


class StandIn(ModuleType):
    """`mmcv._ext` in torch. Reads its functions on first use: `import mmplugin` pays for none of them."""

    def __init__(self, name: str):
        super().__init__(name, 'Stand-in for the compiled operators of mmcv: see mmplugin.ops.')
        self.__spec__ = importlib.machinery.ModuleSpec(name, _Loader(), origin='mmplugin.ops')
        self.__loader__ = self.__spec__.loader

    def __getattr__(self, name: str):
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        signatures = importlib.import_module('mmplugin.ops.signatures')
        found = vars(signatures).get(name)
        if not (isinstance(found, FunctionType) and found.__module__ == signatures.__name__):
            found = _missing(name)
        setattr(self, name, found)
        return found


def compiled_exists() -> bool:
    """Whether mmcv brings compiled operators; mmcv is looked at, not imported."""
    if NAME in sys.modules:
        return not isinstance(sys.modules[NAME], StandIn)
    spec = importlib.util.find_spec('mmcv')
    folders = spec.submodule_search_locations if spec else None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return any(path.name.endswith(suffixes) for folder in folders or () for path in Path(folder).glob('_ext*'))


def install() -> None:
    """Put the stand-in in place where there is no compiled `mmcv._ext`; called by `import mmplugin`."""
    if NAME in sys.modules or compiled_exists():
        return
    sys.modules[NAME] = StandIn(NAME)
    backend.cache_clear()
    _mend_guards()


def _is_fallback(found) -> bool:
    """OneDL's guard: where `from mmcv.ops import X` fails, X becomes a function or class that raises."""
    code = getattr(found.__init__ if isinstance(found, type) else found, '__code__', None)
    return code is not None and any('requires mmcv to be compiled' in str(const) for const in code.co_consts)


def _mend_guards() -> None:
    """Modules imported before mmplugin hold such fallbacks: give them the operators they asked for."""
    for module in list(sys.modules.values()):
        if not getattr(module, '__name__', '').startswith(('mmdet.', 'mmseg.', 'mmcv.', 'mmpretrain.')):
            continue
        for name, found in list(vars(module).items()):
            if isinstance(found, type | FunctionType) and _is_fallback(found):
                operators = importlib.import_module('mmcv.ops')
                if hasattr(operators, name):
                    setattr(module, name, getattr(operators, name))


@lru_cache(maxsize=1)
def backend() -> str:
    """Which operators are at work: 'compiled', 'torchvision' (on a GPU, where it imports) or 'torch'."""
    if compiled_exists():
        return 'compiled'
    import torch

    if torch.cuda.is_available():
        try:
            importlib.import_module('torchvision')
        except (ImportError, RuntimeError):  # RuntimeError: built for another torch
            return 'torch'
        return 'torchvision'
    return 'torch'
