"""The speed of exported backbones in the runtimes that run them, beside PyTorch, fused."""

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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


def inference(settings: Settings, sides: Sequence[Side], size: Size, folder: Path) -> list[Measurement]:
    """Time all sides in turn, after a comparison of what they return.

    Raises:
        UserError: A file returns other maps than PyTorch.
    """
    calls = {side: _call(settings, side, size, folder) for side in sides}
    x = measure.images(1, size, 'cpu')
    with torch.inference_mode():
        for side, call in calls.items():
            if file := file_of(side):
                _compare(call(x), calls[_in_torch(side)](x), file.path(folder, size).name, side.mode)
        times = measure.interleave({side: partial(call, x) for side, call in calls.items()}, settings)
    records = measure.compare('infer', size, 1, times)
    for record in records:
        record.is_baseline = False  # it is shown like the others: it is the same network
    return records


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


def _compare(found: Sequence[Any], expected: Sequence[Tensor], name: str, runtime: str) -> None:
    for one, other in zip(found, expected, strict=True):
        reference = other.numpy()
        error = abs(one - reference).max() / max(1.0, abs(reference).max())
        if not error <= TOLERANCE:
            raise UserError(
                f'{name} in {runtime} returns other maps than PyTorch: largest error {error:.2g}. If it was written by '
                'another version, remove it'
            )
