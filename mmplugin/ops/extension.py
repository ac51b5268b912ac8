"""The stand-in for ``mmcv._ext``, installed only if mmcv has no compiled operators."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from mmplugin.errors import UserError

NAME = 'mmcv._ext'
HOW_TO_COMPILE = (
    'To compile the operators of mmcv, run `pip install --no-build-isolation onedl-mmcv` with a C++ compiler (about 15 '
    'minutes on two cores; CUDA kernels also need nvcc), or install the `mmcv` wheel for your torch and CUDA.'
)


def _missing(name: str) -> Callable[..., NoReturn]:
    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(
            f'The operator {name!r} of mmcv is not compiled, and mmplugin.ops does not implement it. {HOW_TO_COMPILE}'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


class _Loader(importlib.abc.Loader):
    """Lets ``mmcv.utils.ext_loader.check_ops_exist`` find the module."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Create the stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the stand-in needs no initialization."""


class StandIn(ModuleType):
    """``mmcv._ext`` in torch; its functions are imported on first use, so that ``import mmplugin`` stays fast."""

    def __init__(self, name: str):
        super().__init__(name, 'Stand-in for the compiled operators of mmcv, see mmplugin.ops.')
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
    """Return whether mmcv has compiled operators, without importing mmcv."""
    if NAME in sys.modules:
        return not isinstance(sys.modules[NAME], StandIn)
    spec = importlib.util.find_spec('mmcv')
    folders = spec.submodule_search_locations if spec else None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return any(path.name.endswith(suffixes) for folder in folders or () for path in Path(folder).glob('_ext*'))


def install() -> None:
    """Install the stand-in if there is no compiled ``mmcv._ext``; ``import mmplugin`` calls this."""
    if NAME in sys.modules or compiled_exists():
        return
    sys.modules[NAME] = StandIn(NAME)
    backend.cache_clear()
    _replace_fallbacks()


def _is_fallback(found: Any) -> bool:
    """Return whether this is OneDL's fallback: if ``from mmcv.ops import X`` fails, X is a function that raises."""
    function = found.__init__ if isinstance(found, type) else found  # type: ignore[misc]
    code = getattr(function, '__code__', None)
    return code is not None and any('requires mmcv to be compiled' in str(const) for const in code.co_consts)


def _replace_fallbacks() -> None:
    """Replace the fallbacks in modules that were imported before mmplugin by the operators."""
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
    """Return which operators run: ``compiled``, ``torchvision`` (on a GPU, if it can be imported) or ``torch``."""
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


def torchvision_operators(x: Any) -> Any:
    """Return torchvision's operators if they are to run on ``x``, else None; on a CPU they are no faster."""
    import torch

    return torch.ops.torchvision if x.is_cuda and backend() == 'torchvision' else None
