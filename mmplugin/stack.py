"""The two sets of OpenMMLab packages that mmplugin supports, and the differences between them.

OneDL is the maintained continuation of OpenMMLab and the default. Stock is OpenMMLab's own last release. Both use the
same import names, so the installed distributions decide which one is active.
"""

import io
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

LOWEST_TORCH = '2.7'
TESTED_TORCH = '2.13.0'


@dataclass(frozen=True, eq=False)
class Stack:
    """One set of packages.

    Args:
        title: Name for messages.
        extra: Extra of mmplugin that installs the packages.
        pins: Distribution of each import name, and the version that mmplugin is tested with.
        needs_pkg_resources: Whether mmengine imports ``pkg_resources``, which setuptools removed in version 82.
        below_mmcv: First mmcv version that mmdet and mmseg refuse, if any.
        mmpretrain: Optional distribution for classification, and the version that mmplugin is tested with.
    """

    title: str
    extra: str
    pins: dict[str, tuple[str, str]]
    needs_pkg_resources: bool
    below_mmcv: str | None
    mmpretrain: tuple[str, str]

    @property
    def requirements(self) -> list[str]:
        """The tested packages as requirements for pip."""
        return [f'{name}=={release}' for name, release in self.pins.values()]


ONEDL = Stack(
    title='OneDL',
    extra='onedl',
    pins={
        'mmengine': ('onedl-mmengine', '0.10.12'),
        'mmcv': ('onedl-mmcv', '2.3.6'),
        'mmdet': ('onedl-mmdetection', '3.5.1'),
        'mmseg': ('onedl-mmsegmentation', '1.4.2'),
    },
    needs_pkg_resources=False,
    below_mmcv=None,
    mmpretrain=('onedl-mmpretrain', '1.3.6'),
)
STOCK = Stack(
    title='stock',
    extra='stock',
    pins={
        'mmengine': ('mmengine', '0.10.7'),
        'mmcv': ('mmcv-lite', '2.1.0'),
        'mmdet': ('mmdet', '3.3.0'),
        'mmseg': ('mmsegmentation', '1.2.2'),
    },
    needs_pkg_resources=True,
    below_mmcv='2.2.0',
    mmpretrain=('mmpretrain', '1.2.0'),
)


@cache
def current() -> Stack:
    """Return the stack whose mmengine is installed, OneDL if both or neither are."""
    installed = [stack for stack in (ONEDL, STOCK) if any(distributions(name=stack.pins['mmengine'][0]))]
    return installed[0] if installed else ONEDL


def ignore_known_warnings() -> None:
    """Ignore warnings of other libraries that the user can do nothing about. Only the commands call this."""
    for message, category in _KNOWN_WARNINGS:
        warnings.filterwarnings('ignore', message=message, category=category)


def import_quietly(name: str) -> ModuleType:
    """Import a package of mmdet or mmseg without the lines that it prints about optional packages."""
    with redirect_stdout(io.StringIO()):
        return import_module(name)


_KNOWN_WARNINGS = (
    # mmcv without compiled operators; mmplugin.ops implements those that detection needs
    ('Fail to import ``MultiScaleDeformableAttention``', UserWarning),
    ('pkg_resources is deprecated', UserWarning),
)

IMPORT_ERROR: ImportError | None = None
"""The error because of which ``import mmplugin`` registered nothing, if a command was started nevertheless."""


def defer_import_error(error: ImportError) -> None:
    """Store ``error`` if a command of mmplugin is starting, so that the command can explain it; otherwise raise it.

    The doctor has to start in a broken environment, and the other commands refer to the doctor.
    """
    global IMPORT_ERROR
    if not is_command():
        message = f'mmplugin cannot be imported: {error}. Run `python -m mmplugin.doctor` to see how to fix it.'
        raise ImportError(message) from error
    IMPORT_ERROR = error


def is_command() -> bool:
    """Return whether this process is ``mmplugin``, ``python -m mmplugin`` or its doctor, or a script in ``tools``."""
    program = sys.argv[0] if sys.argv else ''
    if program == '-m':  # Python replaces this with the path of the module later
        return sys.orig_argv[sys.orig_argv.index('-m') + 1] in ('mmplugin', 'mmplugin.cli', 'mmplugin.doctor')
    path, package = Path(program).resolve(), Path(__file__).parent
    return path.stem == 'mmplugin' or path.parent in (package.parent / 'tools', package / '.mim' / 'tools')
