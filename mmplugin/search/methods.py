"""The methods of ``mmplugin search``: from the command line, and as a function."""

import argparse
import copy
import shlex
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, init_dist, is_main_process
from rich.console import Console

from mmplugin.engine.processes import start_group
from mmplugin.engine.work_dir import locked, prepare_folder
from mmplugin.errors import UserError

from .budget import Budget
from .conditions import FUNCTION, PROBES
from .joint import JointRun
from .latency import LatencyTable
from .prune_run import PruneRun
from .report import prune_report, write_report
from .result import STATE, Found, Result
from .run import START, Run
from .slim import SlimRun
from .space import Space

METHODS: dict[str, type[Run]] = {run.method: run for run in (PruneRun, JointRun, SlimRun)}
DEFAULTS: dict[str, Any] = dict(
    method='prune', checkpoint=None, trust=False, of='model', recover=None, images=None, by='latency', resume=False,
    size=(512, 512), batch=1, mode='fused', device='cpu', threads=None, rounds=10, clock='wall', latency_table=None,
    steps=None, exact=False, targets=None, start=None, grow=False,
)  # fmt: skip


def search(
    cfg: Config,
    budget: Budget,
    space: Space | None = None,
    *,
    table: LatencyTable | None = None,
    seed: int = 0,
    work_dir: str | Path = 'work_dirs/search',
    **options: Any,
) -> Result:
    """Search the network of a config that meets a budget.

    Args:
        cfg: Config, adapted to its data; ``load_from`` names a trained model.
        budget: What the result may cost.
        space: What may be searched; all that can be by default.
        table: Latency table; measured by default.
        seed: Seed of the search.
        work_dir: Folder of the result.
        options: Options of ``mmplugin search``, such as ``size=(512, 512)``, ``recover=100`` or ``rounds=20``.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f'search() has no option {", ".join(unknown)}; allowed: {", ".join(DEFAULTS)}')
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(prepare_folder(work_dir))
    chosen = {**DEFAULTS, **options, 'seed': seed}
    if chosen['method'] not in METHODS:
        raise UserError(f'method is {chosen["method"]!r}; allowed: {", ".join(METHODS)}')
    if table:
        chosen |= {name: value for name, value in _options_of(table).items() if name not in options}
    with locked(cfg.work_dir):
        if not chosen['resume']:
            _remove_state(Path(cfg.work_dir))
        result = METHODS[chosen['method']](cfg, argparse.Namespace(**chosen), budget, table, space).run()
        _remove_state(Path(cfg.work_dir))
        return result


def _options_of(table: LatencyTable) -> dict[str, Any]:
    """Return the options with which a search measures as its table was measured."""
    conditions = table.conditions
    names = ['size', 'batch']
    if conditions.mode != PROBES:
        names += ['mode', 'device', 'threads', *([] if conditions.clock == FUNCTION else ['clock'])]
    return {name: getattr(conditions, name) for name in names}


def run_search(cfg: Config, options: argparse.Namespace, budget: Budget) -> int:
    """Run the command."""
    if options.launcher != 'none':
        if options.launcher == 'pytorch':
            start_group('gloo' if options.device == 'cpu' else 'nccl')
        if not torch.distributed.is_initialized():
            init_dist(options.launcher)
    folder = prepare_folder(cfg.work_dir)
    with locked(folder) if is_main_process() else nullcontext():
        if not options.resume and is_main_process():
            _remove_state(folder)
        barrier()
        run = METHODS[options.method](cfg, options, budget)
        if is_main_process():
            run.report = partial(_report, run)
        run.run()
        if is_main_process():
            _remove_state(folder)
    return 0


def _report(run: Run, found: Found) -> None:
    report = prune_report(found.result, run.options, found.budget, run.published, found.kept)
    write_report(found.folder / 'report.html', report)
    _show(found.result, found.folder, ' --mini' if run.options.mini else '')


def _remove_state(folder: Path) -> None:
    for name in (STATE, START):
        (folder / name).unlink(missing_ok=True)


def _show(result: Result, folder: Path, mini: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(result.summary, markup=False)
    config, whole = (shlex.quote(str(folder / name)) for name in ('config.py', 'whole.pth'))
    console.print(f'Wrote {folder}; report.html shows how it was found. Next:', markup=False)
    console.print(f'  mmplugin train {config}{mini} --cfg-options load_from={whole}', markup=False)
    console.print(f'  mmplugin test {config} {whole}{mini}', markup=False)
