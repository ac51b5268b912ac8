"""``mmplugin search --method prune``: rounds of pruning and recovery until the measured model meets the budget."""

import argparse
import copy
import json
import shlex
import statistics
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.console import Console
from torch import nn

from mmplugin.benchmark.measure import Settings as Timing
from mmplugin.convert import checkpoint_io
from mmplugin.engine import weights
from mmplugin.engine.work_dir import locked, prepare_folder
from mmplugin.errors import UserError
from mmplugin.hooks.warm_start import WarmStartHook
from mmplugin.text import duration

from .budget import QUANTITIES, Budget, Figures
from .latency import LatencyTable
from .narrow import readers_of
from .prune import Pruner, Round, Settings
from .report import prune_report, write_report
from .result import STATE, TRACE, Result, read_trace, write_trace
from .space import Space
from .subnet import arguments_of, family_of
from .task import Task
from .whole import Meter, ParameterCounter, WholeCount, WholeLatency, backbone_macs

IMAGES, RECOVER, START_STEPS = 64, 40, 150
CLOSE = 0.05  # share of the target by which the measured latency may differ
EXTRA_ROUNDS = 3  # after the prediction met the target, but the measurement did not
TABLE = 'latency.json'
DEFAULTS: dict[str, Any] = dict(
    checkpoint=None, trust=False, of='model', recover=None, images=None, by='latency', resume=False, size=(512, 512),
    batch=1, mode='fused', device='cpu', threads=None, rounds=10, clock='wall', latency_table=None,
)  # fmt: skip


class Search:
    """One run of the command.

    Args:
        cfg: Config, adapted to its data.
        options: Command line.
        budget: What the result may cost.
        table: Latency table; measured if it is None.
        space: What may be removed; all that can be if it is None.
    """

    meter: type[Meter] = Meter  # tests replace it by one without a clock

    def __init__(
        self,
        cfg: Config,
        options: argparse.Namespace,
        budget: Budget,
        table: LatencyTable | None = None,
        space: Space | None = None,
    ):
        self.cfg, self.options, self.budget, self.table, self.space = cfg, options, budget, table, space
        self.folder = Path(cfg.work_dir)
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.started = time.perf_counter()
        if options.threads:
            torch.set_num_threads(options.threads)

    def say(self, text: str) -> None:
        """Print a line of progress."""
        self.console.print(f'search | {duration(time.perf_counter() - self.started)} | {text}', markup=False)

    def run(self) -> Result:
        """Search, and write the work folder."""
        options = self.options
        state = self._state() if options.resume else None
        recover = RECOVER if options.recover is None else options.recover
        settings = Settings(recover=recover, by_latency=options.by == 'latency')
        task = Task(self.cfg, options.images or IMAGES, options.seed, options.device)
        table = self._table(task)  # first: a machine that is too busy is noticed before anything is trained
        first = self._start_(task, state)
        start_model = copy.deepcopy(task.model)
        timing = Timing(
            batches=[options.batch], rounds=options.rounds, clock=options.clock, device=options.device,
            threads=options.threads,
        )  # fmt: skip
        x = task.example(options.size, options.batch)
        meter = self.meter(start_model, options.of, task.segmentation, x, options.mode, timing)
        start_ms, backbone_ms = meter.start_ms()
        if state:  # the target stays what it was
            start_ms = read_trace(self.folder / TRACE)[0]['measured']
        start = meter.figures(start_model, start_ms)
        budget = self.budget.of_start(start)
        self._check(budget, start)
        predictors = self._predictors(task, table, start, start_ms - backbone_ms)
        pruner = Pruner(task, next(iter(predictors.values())), settings)
        if self.space:
            if self.space.start != pruner.space.start:
                raise UserError(f'the space starts from {self.space.start}, but the config from {pruner.space.start}')
            pruner.space = self.space
        pruner.batches_used = first
        trace = [self._first(task, start)]
        if state:
            trace = self._restore_(task, pruner, predictors.get('latency_ms'), state)
        return self._rounds(task, pruner, predictors, meter, budget, start, trace)

    def _predictors(self, task: Task, table: LatencyTable | None, start: Figures, rest_ms: float) -> dict[str, Any]:
        """Return functions from an arch to what the whole model costs, for each limit of the budget."""
        backbone = task.model.backbone
        family, arch = family_of(backbone), backbone.explicit(backbone.settings)
        counts: dict[str, Any] = dict(
            params=ParameterCounter(family),
            macs=partial(backbone_macs, family, tuple(self.options.size)),
        )
        found: dict[str, Any] = {}
        for name in self._names():
            if name == 'latency_ms':
                assert table is not None
                found[name] = WholeLatency(table.predict, arch, start.latency_ms, start.latency_ms - rest_ms)
            else:
                found[name] = WholeCount(counts[name], arch, getattr(start, name))
        return found

    def _names(self) -> list[str]:
        """Return the names of what the budget limits."""
        return [name for name in QUANTITIES if getattr(self.budget, name) is not None or name in self.budget.shares]

    def _arch(self, task: Task) -> dict[str, Any]:
        return task.model.backbone.settings

    def _start_(self, task: Task, state: dict | None) -> int:
        """Load or train the start; return how many training batches that took."""
        checkpoint = self.options.checkpoint or self.cfg.get('load_from')
        if checkpoint:
            content = checkpoint_io.read(checkpoint, self.options.trust)
            weights.load_exactly(task.model, weights.state_dict_of(content, checkpoint), checkpoint)
            return 0
        path = self.folder / '.start.pth'
        if state and path.is_file():
            weights.load_exactly(task.model, weights.state_dict_of(checkpoint_io.read(path), path), path)
            return START_STEPS
        self.say(f'no CHECKPOINT: the start is trained for {START_STEPS} steps first')
        for hook in self.cfg.get('custom_hooks') or []:
            if hook.get('type') == 'WarmStartHook':
                options = {key: value for key, value in hook.items() if key != 'type'}
                model = task.model
                WarmStartHook(**options).pretrain_(
                    model.backbone, model.data_preprocessor.mean, model.data_preprocessor.std
                )
        losses = list(task.train(0, START_STEPS))
        self.say(f'start: loss {losses[0]:.3f} -> {statistics.mean(losses[-10:]):.3f}')
        checkpoint_io.write(path, dict(state_dict=task.model.state_dict()), force=True)
        return START_STEPS

    def _table(self, task: Task) -> LatencyTable | None:
        if self.table or 'latency_ms' not in self._names():
            return self.table
        options, family = self.options, family_of(task.model.backbone)
        own, conditions = self.folder / TABLE, dict(family=family, size=tuple(options.size), mode=options.mode)
        path = options.latency_table or (own if options.resume and own.is_file() else None)
        if path:
            return LatencyTable.load(path, **conditions)
        self.say(f'measuring the latency of the parts of {family} networks at {options.size[0]}x{options.size[1]}')
        table = LatencyTable.measure(
            family, tuple(options.size), options.mode, around=self._arch(task), batch=options.batch,
            threads=options.threads, device=options.device, seed=options.seed, clock=options.clock,
        )  # fmt: skip
        self.say(f'latency table: {table.check()}')
        table.save(own)
        return table

    def _check(self, budget: Budget, start: Figures) -> None:
        limits = budget.limits()
        if 'memory' in limits:
            raise UserError('--method prune cannot aim at memory; use --target-latency, -params or -macs')
        if not budget.unmet(start):
            costs = ', '.join(f'{QUANTITIES[name].format(getattr(start, name))}' for name in limits)
            raise UserError(f'the budget ({budget}) is met already: the start has {costs}. Start from a larger network')

    def _first(self, task: Task, start: Figures) -> dict[str, Any]:
        loss = task.score()
        self.say(f'start: {start.latency_ms:.1f} ms, {start.params / 1e6:.2f} M parameters, loss {loss:.4f}')
        arch = task.model.backbone.explicit(self._arch(task))
        return dict(
            number=0, arch=arch, loss=loss, measured=start.latency_ms, params=start.params, macs=start.macs
        )  # fmt: skip

    def _rounds(
        self,
        task: Task,
        pruner: Pruner,
        predictors: dict[str, Any],
        meter: Meter,
        budget: Budget,
        start: Figures,
        trace: list[dict[str, Any]],
    ) -> Result:
        limits, extra = budget.limits(), 0
        for name, predict in predictors.items():
            self._check_reachable(name, predict, pruner.space.smallest(), limits[name])
        while (goal := self._goal(trace[-1], limits)) and extra <= EXTRA_ROUNDS:
            pruner.aim_(predictors[goal], getattr(start, goal))
            record = pruner.round(limits[goal])
            extra += record.cost <= limits[goal]
            record.measured = start.latency_ms * meter.ratio(task.model)
            figures = meter.figures(task.model, record.measured)
            record.params, record.macs = figures.params, figures.macs
            if 'latency_ms' in predictors:
                predictors['latency_ms'].correct(pruner.arch, record.measured)
            trace.append(asdict(record))
            self._save_state(task, pruner, predictors.get('latency_ms'), trace)
            self.say(self._line(record, goal, limits[goal]))
        figures = meter.figures(task.model, trace[-1]['measured'])
        result = Result(
            self.cfg, task.model, task.dataset.metainfo, self._summary(figures, start, limits, trace), trace
        )
        result.save(self.folder)
        return result

    @staticmethod
    def _goal(last: dict[str, Any], limits: dict[str, float]) -> str | None:
        """Return the first limit that is not met. A latency may exceed it by less than it varies."""
        own = dict(last, latency_ms=last['measured'] / (1 + CLOSE / 2))
        return next((name for name, limit in limits.items() if own[name] > limit), None)

    def _check_reachable(self, name: str, predict: Any, smallest: dict[str, Any], limit: float) -> None:
        least, quantity = predict(smallest), QUANTITIES[name]
        if least > limit * (1 + CLOSE):
            raise UserError(
                f'the smallest network of this space takes about {quantity.format(least)} of {quantity.name} here, and '
                f'the target is {quantity.format(limit)}: neck and head alone take {quantity.format(predict.rest)}. '
                'Use a smaller --size, --of backbone, or a config with a smaller head'
            )

    @staticmethod
    def _line(record: Round, goal: str, limit: float) -> str:
        text = QUANTITIES[goal].format
        own: Any = record.measured if goal == 'latency_ms' else getattr(record, goal)
        return (
            f'round {record.number}: {len(record.actions)} groups removed, loss {record.pruned_loss:.4f}, after '
            f'recovery {record.loss:.4f}; {text(record.cost)} predicted, {text(own)} measured, target {text(limit)}'
        )

    @staticmethod
    def _summary(figures: Figures, start: Figures, limits: dict[str, float], trace: list[dict[str, Any]]) -> str:
        parts = []
        for name, limit in limits.items():
            value, text = getattr(figures, name), QUANTITIES[name].format
            missed = value > limit * (1 + CLOSE)
            parts.append(f'{text(value)} of {text(limit)} (measured){" MISSED" if missed else ""}')
        return (
            f'{", ".join(parts)}; {figures.params / 1e6:.2f} M parameters, loss {trace[-1]["loss"]:.3f}. The start has '
            f'{start.latency_ms:.1f} ms, {start.params / 1e6:.2f} M and {trace[0]["loss"]:.3f}.'
        )

    def _save_state(
        self, task: Task, pruner: Pruner, latency: WholeLatency | None, trace: list[dict[str, Any]]
    ) -> None:
        write_trace(self.folder / TRACE, trace)
        content = dict(
            state_dict=task.model.state_dict(), arch=json.dumps(pruner.arch), rounds=pruner.rounds,
            batches_used=pruner.batches_used, latency=[latency.factor, latency.rest] if latency else [],
            identity=self._identity(),
        )  # fmt: skip
        checkpoint_io.write(self.folder / STATE, content, force=True)

    def _identity(self) -> dict[str, Any]:
        options = self.options
        names = ('seed', 'size', 'batch', 'mode', 'of', 'by', 'recover', 'images', 'device')
        return {name: str(getattr(options, name)) for name in names} | dict(budget=str(self.budget))

    def _state(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.is_file():
            self.say('nothing to resume: the search starts from its beginning')
            return None
        content: dict[str, Any] = dict(checkpoint_io.read(path))
        saved, own = content.get('identity'), self._identity()
        if saved != own:
            differing = [
                f'{key}: {own[key]}, there {(saved or {}).get(key)}'
                for key in own
                if (saved or {}).get(key) != own[key]
            ]
            raise UserError(
                f'--resume: {self.folder} has another search ({"; ".join(differing)}); use its options, or '
                'another --work-dir'
            )
        return content

    def _restore_(
        self, task: Task, pruner: Pruner, latency: WholeLatency | None, state: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Continue after the last complete round."""
        arch = json.loads(state['arch'])
        model, backbone = task.model, task.model.backbone
        model.backbone = type(backbone)(arch, **arguments_of(backbone))
        for key, axis in readers_of(model).items():
            conv = model.get_submodule(key.removesuffix('.weight'))
            stage = int(axis.rpartition('.')[2])
            conv.in_channels = arch['widths'][stage]
            conv.weight = nn.Parameter(conv.weight.new_empty(len(conv.weight), conv.in_channels, *conv.kernel_size))
            model.neck.in_channels = type(model.neck.in_channels)(model.backbone.out_channels)
        model.load_state_dict(state['state_dict'])
        pruner.space = pruner.space.at(arch)
        pruner.rounds, pruner.batches_used = state['rounds'], state['batches_used']
        if latency:
            latency.factor, latency.rest = state['latency']
        trace = read_trace(self.folder / TRACE)[: state['rounds'] + 1]
        self.say(f'resumed after round {pruner.rounds}')
        return trace


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
    """Prune the network of a config until it meets a budget.

    Args:
        cfg: Config, adapted to its data; ``load_from`` names a trained model.
        budget: What the result may cost.
        space: What may be removed; all that can be by default.
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
    if table:
        chosen['size'] = options.get('size') or table.conditions.size
    with locked(cfg.work_dir):
        return Search(cfg, argparse.Namespace(**chosen), budget, table, space).run()


def run_prune(cfg: Config, options: argparse.Namespace, budget: Budget) -> int:
    """Run the command."""
    folder = prepare_folder(cfg.work_dir)
    with locked(folder):
        if not options.resume:
            for name in (STATE, '.start.pth'):
                (folder / name).unlink(missing_ok=True)
        search = Search(cfg, options, budget)
        result = search.run()
        write_report(folder / 'report.html', prune_report(result, options, budget))
        for name in (STATE, '.start.pth'):
            (folder / name).unlink(missing_ok=True)
    console, mini = Console(highlight=False, soft_wrap=True), ' --mini' if options.mini else ''
    console.print(result.summary, markup=False)
    config = shlex.quote(str(folder / 'config.py'))
    console.print(f'Wrote {folder}. Next:', markup=False)
    whole = shlex.quote(str(folder / 'whole.pth'))
    console.print(f'  mmplugin train {config}{mini} --cfg-options load_from={whole}', markup=False)
    console.print(f'  mmplugin test {config} {whole}{mini}', markup=False)
    return 0
