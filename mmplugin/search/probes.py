"""Latency tables from the times of whole networks: compiled and exported ones, and those of other devices.

``write_probes`` writes networks as ONNX files and a list of them, ``probes.csv``. The user times each file on the
device (a phone, an accelerator, ONNX Runtime) and enters the milliseconds. ``read_probes`` makes a table of them.
"""

import argparse
import csv
import io
import json
import logging
import math
import shlex
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.subjects import apply_mode_, from_backbone
from mmplugin.engine.work_dir import prepare_folder
from mmplugin.errors import UserError
from mmplugin.files import atomic_write, reason, require_file
from mmplugin.search.conditions import PROBES, RUNTIMES, Conditions
from mmplugin.search.fitted import FittedModel
from mmplugin.search.latency import CHECKS, CheckRow, LatencyTable, check_row, refuse_seconds
from mmplugin.search.networks import balanced_archs, random_archs
from mmplugin.search.other_archs import family_of
from mmplugin.search.parts import explicit_arch, parts_of
from mmplugin.search.table_io import require_table
from mmplugin.search.timing import CLOCKS, Timed, run_in_turn, threads_set

FIT = 40  # networks that the coefficients are fitted to
LIST, NOTES = 'probes.csv', 'probes.json'
SHORTEST, LONGEST, LARGEST_LIST = 1e-9, 1e9, 1 << 20  # milliseconds, and bytes of the list
COLUMNS, AGAIN = ('file', 'ms'), 'ms_again'  # the last one may stay empty: it shows how well times repeat
Write = Callable[[nn.Module, Tensor, Path], None]


class WholeNetwork:
    """A backbone with random weights in any mode, timed as a whole on the CPU or a GPU."""

    def __init__(self, family: str, arch: dict[str, Any], x: Tensor, mode: str, clock: str):
        cls: Any = FAMILIES[family]
        self.call = apply_mode_(from_backbone(cls(arch, drop_path_rate=0.0).to(x.device)), mode)
        self.x, self.now = x, CLOCKS[clock]

    def times(self) -> list[float]:
        """Run once and return the milliseconds."""
        start = self.now()
        self.call(self.x)
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        return [(self.now() - start) / 1e6]


def probe_archs(family: str, around: dict[str, Any] | None, seed: int) -> tuple[list[dict], list[dict]]:
    """Return the networks to fit to, and those to check with."""
    balanced = balanced_archs(family, around)
    more = random_archs(family, around, FIT - len(balanced) + 1, seed + 1)
    return balanced + more[1:], random_archs(family, around, CHECKS, seed)


def measure_whole(
    conditions: Conditions, around: dict[str, Any] | None, progress: Callable[[int, int], None] | None
) -> LatencyTable:
    """Measure a table of compiled or exported networks, which takes some seconds for each of the 52 networks."""
    archs, check_archs = probe_archs(conditions.family, around, conditions.seed)
    networks, total = [], len(archs) + len(check_archs)
    with (
        threads_set(conditions.threads),
        torch.random.fork_rng(devices=[]),
        torch._dynamo.config.patch(recompile_limit=total, accumulated_recompile_limit=total * 8),
    ):
        torch.manual_seed(conditions.seed)
        x = torch.randn(conditions.batch, 3, *conditions.size).to(conditions.device)
        for i, arch in enumerate([*archs, *check_archs]):
            networks.append(_network(conditions, arch, x))
            with torch.inference_mode():
                networks[-1].times()  # compiles
            if progress:
                progress(i + 1, total)
        times = run_in_turn(networks, conditions.rounds, conditions.seed, progress)
    rows = [check_row(arch, [ms for (ms,) in own]) for arch, own in zip([*archs, *check_archs], times, strict=True)]
    return _fitted(conditions, rows[:FIT], rows[FIT:])


def _network(conditions: Conditions, arch: dict[str, Any], x: Tensor) -> Timed:
    if conditions.mode in RUNTIMES:
        from mmplugin.search.in_runtime import ExportedNetwork

        return ExportedNetwork(conditions, arch, x)
    return WholeNetwork(conditions.family, arch, x, conditions.mode, conditions.clock)


def _fitted(conditions: Conditions, fit: list[CheckRow], checks: list[CheckRow]) -> LatencyTable:
    family = conditions.family
    networks = [parts_of(family, row.arch) for row in fit]
    model = FittedModel.fit(family, conditions.size, conditions.batch, networks, [row.ms for row in fit])
    return LatencyTable(conditions, model, checks)


def write_probes(
    folder: Path,
    family: str,
    size: tuple[int, int],
    batch: int,
    around: dict[str, Any] | None,
    seed: int,
    write: Write,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write 52 networks and the list that the user fills in; return the list.

    Args:
        folder: Where the files go. Files that are there are kept, so that a second call continues.
        family: 'v1', 'v2' or 'evit'.
        size: Height and width of the images.
        batch: Images per inference.
        around: Explicit arch whose sub-networks will be asked for.
        seed: Seed of networks and weights.
        write: Writes a network, fused and in eval mode, for an input, to a file.
        progress: Called after each file with the number of files so far and in total.
    """
    conditions = asdict(Conditions.of_machine(family, size, PROBES, batch, 1, 'cpu', 2, seed, 'wall'))
    archs = [arch for group in probe_archs(family, around, seed) for arch in group]
    notes = dict(conditions=conditions, archs={f'{i:02}.onnx': arch for i, arch in enumerate(archs)})
    path = folder / LIST
    if path.exists() and json.loads(json.dumps(notes)) != _notes(folder):
        raise UserError(f'{folder} has probes of another search; choose another folder')
    with atomic_write(folder / NOTES) as draft:
        draft.write_text(json.dumps(notes) + '\n', encoding='utf-8')
    cls: Any = FAMILIES[family]
    torch.manual_seed(seed)
    x = torch.randn(batch, 3, *size)
    for i, (name, arch) in enumerate(notes['archs'].items()):
        if not (folder / name).exists():
            with atomic_write(folder / name) as draft:
                write(cls(arch, drop_path_rate=0.0).eval().fuse(), x, draft)
        if progress:
            progress(i + 1, len(archs))
    if not path.exists():
        with atomic_write(path) as draft:
            draft.write_text(','.join((*COLUMNS, AGAIN)) + '\n' + ''.join(f'{name},,\n' for name in notes['archs']))
    return path


def read_probes(path: Path) -> LatencyTable:
    """Return the table of a list whose times were filled in."""
    notes = _notes(path.parent)
    try:
        require_table(path, LARGEST_LIST)
        with path.open(encoding='utf-8-sig', newline='') as file:
            rows = list(csv.DictReader(file))
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    if rows and set(COLUMNS) - set(rows[0]):
        raise UserError(f'{path} has the columns {", ".join(map(str, rows[0]))}; required: {", ".join(COLUMNS)}')
    times = {str(row['file']): _milliseconds(path, row, 'ms') for row in rows}
    again = {str(row['file']): _milliseconds(path, row, AGAIN) or times[str(row['file'])] for row in rows}
    if missing := [name for name in notes['archs'] if times.get(name) is None]:
        raise UserError(
            f'{path} has no time of {len(missing)} of {len(notes["archs"])} files: {", ".join(missing[:5])}, ...; time '
            'each on the device and enter the milliseconds in the column ms'
        )
    pairs = {name: (times[name] or 0.0, again[name] or 0.0) for name in notes['archs']}
    refuse_seconds([first for first, _ in pairs.values()], str(path))
    found = [CheckRow(arch, sum(pairs[name]) / 2, *pairs[name]) for name, arch in notes['archs'].items()]
    try:
        conditions = Conditions(**dict(notes['conditions'], size=tuple(notes['conditions']['size'])))
        return _fitted(conditions, found[:FIT], found[FIT:])
    except UserError as error:
        raise UserError(f'{path.with_name(NOTES)}: {error}') from error
    except (TypeError, KeyError, ValueError, OverflowError) as error:  # LinAlgError is a ValueError
        raise UserError(f'{path.with_name(NOTES)} is damaged ({error}); write the probes again') from error


def _milliseconds(path: Path, row: dict[str, Any], column: str) -> float | None:
    text = (row.get(column) or '').strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not SHORTEST <= value <= LONGEST:
        raise UserError(
            f'{path}: the time of {row["file"]} is {text!r}; allowed are milliseconds above 0, such as 12.5'
        )
    return value


def _notes(folder: Path) -> dict[str, Any]:
    path = folder / NOTES
    try:
        require_file(path)
        notes = json.loads(path.read_text(encoding='utf-8'))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path} cannot be read: {reason(error)}; it belongs to {LIST}: keep both together') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is damaged ({error}); write the probes again') from error
    names = {field.name for field in fields(Conditions)}
    conditions, archs = (notes.get(key) if isinstance(notes, dict) else None for key in ('conditions', 'archs'))
    if not isinstance(conditions, dict) or set(conditions) != names or not isinstance(archs, dict):
        raise UserError(f'{path} is damaged; write the probes again')
    if len(archs) != FIT + CHECKS:
        raise UserError(f'{path} is damaged: it has {len(archs)} networks, not {FIT + CHECKS}; write the probes again')
    return notes


def write_onnx(network: nn.Module, x: Tensor, path: Path) -> None:
    """Write a network as one ONNX file."""
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it warns that torchvision's operators are not there
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program: Any = torch.onnx.export(network, (x,), dynamo=True, input_names=['image'], verbose=False)
        program.save(path, external_data=False)


def run_probes(cfg: Config, options: argparse.Namespace) -> int:
    """Run ``mmplugin search --probes``."""
    missing = [name for name in ('onnx', 'onnxscript') if not find_spec(name)]
    if missing:
        raise UserError(f'--probes requires {" and ".join(missing)}: pip install {" ".join(missing)}')
    folder, console = prepare_folder(options.probes, '--probes'), Console(highlight=False, soft_wrap=True)
    family, size = family_of(cfg.model.backbone), tuple(options.size)
    around = explicit_arch(family, cfg.model.backbone.arch)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task('networks', total=None)
        path = write_probes(
            folder, family, size, options.batch, around, options.seed, write_onnx,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    console.print(
        f'Wrote {path} and the networks that it names. Time each file on the device (images {options.batch} x 3 x '
        f'{size[0]} x {size[1]}, float32), enter the median milliseconds in the column ms (and a second '
        'measurement in ms_again, which shows how well times repeat there), and search with it:',
        markup=False,
    )
    console.print(
        f'  mmplugin search CONFIG --of backbone --target-latency 60% --size {size[0]}x{size[1]} --latency-table '
        f'{shlex.quote(str(path))}',
        markup=False,
    )
    return 0
