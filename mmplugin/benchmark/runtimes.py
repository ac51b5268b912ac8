"""The speed of exported backbones in the runtimes that run them, beside PyTorch, fused."""

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmplugin.benchmark import measure
from mmplugin.benchmark.measure import Settings, Side
from mmplugin.benchmark.results import Measurement, Size, size_text
from mmplugin.benchmark.subjects import apply_mode_
from mmplugin.deploy import FORMATS, export_backbone, open_backbone, require_runtime
from mmplugin.errors import UserError

TORCH, DYNAMIC = 'torch', '+dynamic'
MODES = {TORCH: 'fused'}  # the mode of inference that a runtime's name stands for; others stand for themselves
ALLOWED = (TORCH, *FORMATS, *(f'{name}{DYNAMIC}' for name, kind in FORMATS.items() if kind == 'onnx'))
TOLERANCE = 1e-4  # largest error of a map, relative to its largest value
SUFFIXES = {'onnx': '.onnx', 'executorch': '.pte'}


def require(runtimes: Sequence[str]) -> dict[str, str]:
    """Return the versions of runtimes; a ``UserError`` names packages that are missing."""
    names = dict.fromkeys(runtime.removesuffix(DYNAMIC) for runtime in runtimes)
    return {name: require_runtime(name) for name in names if name != TORCH}


class File(NamedTuple):
    """An exported backbone."""

    model: str
    format: str
    dynamic: bool

    def path(self, folder: Path, size: Size) -> Path:
        """Return where the file is."""
        label = f'dynamic-{size_text(size)}' if self.dynamic else size_text(size)
        return folder / f'{self.model.replace(":", "_")}-{label}{SUFFIXES[self.format]}'


def file_of(side: Side) -> File | None:
    """Return the file that a side runs, or None if it runs in PyTorch."""
    runtime = side.mode.removesuffix(DYNAMIC)
    return File(side.model, FORMATS[runtime], side.mode.endswith(DYNAMIC)) if runtime in FORMATS else None


def sides_of(name: str, runtimes: Sequence[str], with_timm: bool) -> list[Side]:
    """Return the sides of a backbone; PyTorch, fused, is the baseline, whether named or not.

    Args:
        name: A backbone.
        runtimes: Some of ``ALLOWED``.
        with_timm: Add timm's network, eager and in each runtime, without a dynamic file: it is built for one size.
    """
    others = [runtime for runtime in runtimes if runtime != TORCH]
    sides = [Side(name, MODES[TORCH], is_baseline=True), *(Side(name, runtime) for runtime in others)]
    if with_timm:
        fixed = [runtime for runtime in others if not runtime.endswith(DYNAMIC)]
        sides += [Side(f'timm:{name}', mode) for mode in ('eager', *fixed)]
    return sides


def write_files(
    settings: Settings, sides: Sequence[Side], size: Size, folder: Path, progress: Callable[[str], object] = len
) -> tuple[list[Side], list[str]]:
    """Write the files of some sides, each in a new process; those that are in the folder are used as they are.

    Returns:
        The sides that can be measured, and why the others cannot.
    """
    problems: dict[File, str] = {}
    for file in dict.fromkeys(filter(None, map(file_of, sides))):
        path = file.path(folder, size)
        if path.exists():
            continue
        progress(f'exporting {path.name}')
        try:
            measure.in_new_process(_export, settings, file, size, path)
        except (UserError, BrokenProcessPool, RuntimeError, MemoryError) as error:
            reason = 'its process ran out of memory or was killed' if isinstance(error, BrokenProcessPool) else error
            problems[file] = f'{path.name} cannot be written: {str(reason).strip().partition(chr(10))[0]:.300}'
    return [side for side in sides if file_of(side) not in problems], list(problems.values())


def _export(settings: Settings, file: File, size: Size, path: Path) -> None:
    model = measure.build_side(settings, Side(file.model), size).model
    export_backbone(model, path, size, file.format, file.dynamic)


def inference(
    settings: Settings, sides: Sequence[Side], size: Size, folder: Path
) -> tuple[list[Measurement], list[str]]:
    """Time all sides in turn, after a comparison of what they return.

    Returns:
        The times, and which files return other maps than PyTorch; they are not timed.
    """
    calls = {side: _call(settings, side, size, folder) for side in sides}
    x = measure.images(1, size, 'cpu')
    with torch.inference_mode():
        errors = {
            side: _largest_error(calls[side](x), calls[_in_torch(side)](x))
            for side in sides
            if file_of(side) is not None
        }
        wrong = {side: error for side, error in errors.items() if not error <= TOLERANCE}
        times = measure.interleave(
            {side: partial(call, x) for side, call in calls.items() if side not in wrong}, settings
        )
    records = measure.compare('infer', size, 1, times)
    for record in records:
        record.is_baseline = False  # it is shown like the others: it is the same network
    return records, [_problem(side, size, folder, error) for side, error in wrong.items()]


def _in_torch(side: Side) -> Side:
    """Return the side with the same weights in PyTorch."""
    is_timm = side.model.startswith('timm:')
    return Side(side.model, 'eager') if is_timm else Side(side.model, MODES[TORCH], is_baseline=True)


def _call(settings: Settings, side: Side, size: Size, folder: Path) -> Callable[[Tensor], Any]:
    file = file_of(side)
    if file is None:
        return apply_mode_(measure.build_side(settings, side, size), side.mode)
    run = open_backbone(file.path(folder, size), side.mode.removesuffix(DYNAMIC), settings.threads or 0)
    return lambda x: run(x.numpy())


def _largest_error(found: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """Return the largest error of any map, relative to its largest value."""
    references = [other.numpy() for other in expected]
    errors = [abs(a - b).max() / max(1.0, abs(b).max()) for a, b in zip(found, references, strict=True)]
    return float(np.max(errors))  # NaN if any is NaN


def _problem(side: Side, size: Size, folder: Path, error: float) -> str:
    file = file_of(side)
    assert file is not None
    return (
        f'{file.path(folder, size).name} in {side.mode} was not timed, because it returns other maps than PyTorch: '
        f'largest error {error:.2g}, {TOLERANCE} allowed. If another version of mmplugin wrote it, remove it: the next '
        'run writes it again'
    )
