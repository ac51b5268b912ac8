"""The two sets of OpenMMLab packages mmplugin runs on, and everything that differs between them.

OneDL is the maintained continuation, the default. Stock is what OpenMMLab itself released last. Both use the same
import names, so only the installed distributions tell which one is there.
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


@dataclass(frozen=True, eq=False)
class Stack:
    """One set of packages.

    Attributes:
        title: What people call it.
        extra: The extra of mmplugin that installs it.
        pins: The distribution behind each import name, and the version mmplugin is tested with.
        coco_metric: The evaluator for COCO boxes and masks.
        mmseg_base: What a config writes in ``_base_`` before ``::`` for a file of mmseg, None where mmengine cannot
            find them.
        needs_pkg_resources: Whether mmengine imports ``pkg_resources``, which setuptools dropped in version 82.
        below_mmcv: The first mmcv version that mmdet and mmseg refuse, if any.
    """

    title: str
    extra: str
    pins: dict[str, tuple[str, str]]
    coco_metric: str
    mmseg_base: str | None
    needs_pkg_resources: bool
    below_mmcv: str | None

    @property
    def requirements(self) -> list[str]:
        """The tested packages as pip takes them."""
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
    coco_metric='FasterCocoMetric',
    mmseg_base=None,  # it looks for a distribution named mmsegmentation
    needs_pkg_resources=False,
    below_mmcv=None,
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
    coco_metric='CocoMetric',
    mmseg_base='mmseg',
    needs_pkg_resources=True,
    below_mmcv='2.2.0',
)


@cache
def current() -> Stack:
    """Return the installed stack: the one whose mmengine is there, OneDL where both or neither are."""
    installed = [stack for stack in (ONEDL, STOCK) if any(distributions(name=stack.pins['mmengine'][0]))]
    return installed[0] if installed else ONEDL


def quiet_known_noise() -> None:
    """Silence the libraries' warnings that are not about the user's doing. Tools call this, imports do not."""
    for message, category in _NOISE:
        warnings.filterwarnings('ignore', message=message, category=category)


def import_quietly(name: str) -> ModuleType:
    """Import a package of mmdet or mmseg without what it prints: that its vendor's cloud is not installed."""
    with redirect_stdout(io.StringIO()):
        return import_module(name)


_NOISE = (
    # mmcv without compiled operators; mmplugin.ops has those that detection needs
    ('Fail to import ``MultiScaleDeformableAttention``', UserWarning),
    ('pkg_resources is deprecated', UserWarning),
)

IMPORT_ERROR: ImportError | None = None
"""Why ``import mmplugin`` registered nothing, where a command of ours was let in all the same."""


def _is_our_command() -> bool:
    """Tell whether this process is `mmplugin`, `python -m` with it or its doctor, or a script in our `tools`."""
    program = sys.argv[0] if sys.argv else ''
    if program == '-m':  # python has not put the module's path there yet
        return sys.orig_argv[sys.orig_argv.index('-m') + 1] in ('mmplugin', 'mmplugin.cli', 'mmplugin.doctor')
    path, package = Path(program).resolve(), Path(__file__).parent
    return path.stem == 'mmplugin' or path.parent in (package.parent / 'tools', package / '.mim' / 'tools')


def let_commands_in(error: ImportError) -> None:
    """Let mmplugin's own commands start in a broken environment: the doctor is made for it, the others explain it.

    ``mmplugin/__init__.py`` hands over the error it met. Everybody else gets it, with the way out.
    """
    global IMPORT_ERROR
    if not _is_our_command():
        message = f'mmplugin cannot start here: {error}. `python -m mmplugin.doctor` says how to mend it.'
        raise ImportError(message) from error
    IMPORT_ERROR = error
