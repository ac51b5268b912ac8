"""The methods of ``mmplugin search``: from the command line, and as a function."""

import argparse
import copy
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, init_dist, is_main_process
from rich.console import Console

from mmplugin.engine.work_dir import locked, prepare_folder
from mmplugin.errors import UserError

from .budget import Budget
from .joint import JointRun
from .latency import LatencyTable
from .prune_run import PruneRun
from .report import prune_report, write_report
from .result import STATE, Result
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
        chosen['size'] = options.get('size') or table.conditions.size
    with locked(cfg.work_dir):
        return METHODS[chosen['method']](cfg, argparse.Namespace(**chosen), budget, table, space).run()


def run_search(cfg: Config, options: argparse.Namespace, budget: Budget) -> int:
    """Run the command."""
    if options.launcher != 'none':
        if options.device == 'cpu' and options.launcher == 'pytorch':  # mmengine's own start requires a GPU
            torch.distributed.init_process_group('gloo')
        else:
            init_dist(options.launcher)
    folder = prepare_folder(cfg.work_dir)
    with locked(folder) if is_main_process() else nullcontext():
        if not options.resume and is_main_process():
            _remove_state(folder)
        barrier()
        run = METHODS[options.method](cfg, options, budget)
        result = run.run()
        if is_main_process():
            for place, own, limits, kept in _networks(run, result, budget):
                write_report(place / 'report.html', prune_report(own, options, limits, run.published, kept))
                _show(own, place, ' --mini' if options.mini else '')
            _remove_state(folder)
    return 0


def _networks(run: Run, result: Result, budget: Budget) -> list[tuple[Path, Result, Budget, Any]]:
    if isinstance(run, JointRun):
        return [(found.folder, found.result, found.budget, found.kept) for found in run.found]
    return [(run.folder, result, budget, None)]


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
