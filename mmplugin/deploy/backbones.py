"""Backbones as files and back, for the benchmark and the search, which import these names from ``mmplugin.deploy``."""

import copy
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mmplugin
from mmplugin.backbones import DenseBackbone
from mmplugin.deploy import export, mobile
from mmplugin.deploy.forms import FeatureForm, level_names
from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.models import Traceable, least_sides
from mmplugin.deploy.runtimes import open_file
from mmplugin.errors import UserError

# The format that each runtime reads.
FORMATS = {'onnxruntime': 'onnx', 'openvino': 'onnx', 'executorch': 'executorch'}


def export_backbone(
    module: nn.Module, path: str | Path, size: Sequence[int], format: str = 'onnx', dynamic: bool = False
) -> None:
    """Write a backbone as a file that takes a normalized tensor (1, 3, H, W) and returns its maps.

    The file is not compared with PyTorch: its caller does that, on inputs of its own.

    Args:
        module: A backbone of mmplugin, whose norms are folded for the file, or any module that returns feature maps.
            It stays as it is.
        path: The file to write.
        size: Height and width.
        format: A format of the command ``export``; ``FORMATS`` has that of each runtime.
        dynamic: Whether the file takes other sizes.
    """
    if format not in export.PACKAGES:
        raise UserError(f"no format '{format}'; allowed: {', '.join(export.PACKAGES)}")
    mobile.refuse_impossible(format, dynamic, image=False, int8=False)
    export.require_packages(format)
    export.write(*_program(module, size, dynamic), format, path)


def _program(module: nn.Module, size: Sequence[int], dynamic: bool) -> tuple[Any, Traceable]:
    backbone = copy.deepcopy(module).eval().requires_grad_(False)
    if isinstance(backbone, DenseBackbone):
        backbone.fuse()
    form, (height, width), least = FeatureForm(backbone, None).eval(), size, least_sides(backbone, dynamic)
    if min(size) < least[0] or max(size) < least[1]:
        raise UserError(
            f'{height}x{width}: this {"dynamic file" if dynamic else "backbone"} takes images whose short side is '
            f'{least[0]} or more, and whose long side is {least[1]} or more; choose a larger size'
        )
    if isinstance(backbone, DenseBackbone):
        names = level_names(form)
    else:  # a network of timm may be for one size
        with torch.no_grad():
            levels = form(torch.zeros(1, 3, height, width))
        names = tuple(f'stride{round(height / level.shape[2])}' for level in levels)
    metadata = Metadata(
        name=type(backbone).__name__,
        kind='features',
        input='tensor',
        size=(height, width),
        dynamic=dynamic,
        min_size=least,
        resize={'fit': [height, width]},
        versions=dict(mmplugin=mmplugin.__version__, torch=torch.__version__),
    )
    found = Traceable(form, ('tensor',), {0: (2, 3)}, names, metadata)
    return export.program_of(found), found


def open_backbone(path: str | Path, runtime: str, threads: int = 0) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Open what ``export_backbone`` wrote.

    Args:
        path: The file.
        runtime: One of ``FORMATS``.
        threads: Threads of the runtime; 0 is its own choice.

    Returns:
        A function from a float32 array (1, 3, H, W) to feature maps.
    """
    run = open_file(path, runtime, threads)
    return lambda tensor: list(run({'tensor': tensor}).values())


def require_runtime(runtime: str) -> str:
    """Return the version of a runtime; a ``UserError`` names packages that are missing to write or run its files."""
    if runtime not in FORMATS:
        raise UserError(f"no runtime '{runtime}'; allowed: {', '.join(FORMATS)}")
    export.require_packages('openvino' if runtime == 'openvino' else FORMATS[runtime])
    return version(runtime)
