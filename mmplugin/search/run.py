"""What every search does before and after its method: data, latency table, start, budget and work folder."""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from rich.console import Console

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.measure import Settings as Timing
from mmplugin.convert import checkpoint_io
from mmplugin.engine import weights
from mmplugin.errors import UserError
from mmplugin.hooks.warm_start import WarmStartHook
from mmplugin.text import duration, some

from .budget import QUANTITIES, Budget, Figures
from .conditions import PROBES
from .latency import LatencyTable
from .result import STATE, TRACE, read_trace
from .space import Space
from .subnet import family_of
from .task import Task
from .whole import Meter, ParameterCounter, TableMeter, WholeCount, WholeLatency, backbone_macs

IMAGES, START_STEPS = 64, 150
CLOSE = 0.05  # share of the target by which the measured latency may differ
TABLE, START = 'latency.json', '.start.pth'


class Run:
    """One run of the command. Subclasses implement ``_search``.

    Args:
        cfg: Config, adapted to its data.
        options: Command line.
        budget: What the result may cost.
        table: Latency table; measured if it is None.
        space: What may be searched; all that can be if it is None.
    """

    method = ''
    meter_class: type[Meter] = Meter  # tests replace it by one without a clock
    task: Task
    meter: Meter
    start: Figures
    limits: dict[str, float]
    predictors: dict[str, Any]  # for each limit: a function from an arch to what the whole model costs
    published: dict[str, dict[str, float]]  # networks of the family, what each costs by prediction
    batches_used: int  # of the training stream, for the start

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

    def run(self) -> Any:
        """Search, and write the work folder."""
        options = self.options
        if self.cfg.model.backbone.get('with_cp'):
            raise UserError('a search cannot use with_cp=True; add --cfg-options model.backbone.with_cp=False')
        state = self._read_state() if options.resume else None
        self.task = Task(self.cfg, options.images or IMAGES, options.seed, options.device)
        self._take_table()  # first: a machine that is too busy is noticed before anything is trained
        self.batches_used = self._load_or_train_start(state)
        self._measure_start(state)
        return self._search(state)

    def _search(self, state: dict[str, Any] | None) -> Any:
        raise NotImplementedError

    @property
    def quantities(self) -> list[str]:
        """Names of what the budget limits."""
        return [name for name in QUANTITIES if getattr(self.budget, name) is not None or name in self.budget.shares]

    @property
    def settings(self) -> dict[str, Any]:
        """Arch of the backbone as it is."""
        return self.task.model.backbone.settings

    @property
    def is_elsewhere(self) -> bool:
        """Whether the latency is that of another device, so that it cannot be measured here."""
        return self.table is not None and self.table.conditions.mode == PROBES

    def _take_table(self) -> None:
        if self.table or 'latency_ms' not in self.quantities:
            return
        options, family = self.options, family_of(self.task.model.backbone)
        own, conditions = self.folder / TABLE, dict(family=family, size=tuple(options.size), mode=options.mode)
        path = options.latency_table or (own if options.resume and own.is_file() else None)
        if path:
            self.table = LatencyTable.load(path, **conditions)
            if self.is_elsewhere and options.of != 'backbone':
                raise UserError(f'{path} has times of backbones on another device: add --of backbone')
            self.say(f'latency table: {self.table.check()}')
        else:
            self.table = self._measured_table(family)
            self.say(f'latency table: {self.table.check()}')
            self.table.save(own)

    def _measured_table(self, family: str) -> LatencyTable:
        options = self.options
        self.say(f'measuring the latency of the parts of {family} networks at {options.size[0]}x{options.size[1]}')
        return LatencyTable.measure(
            family, tuple(options.size), options.mode, around=self.settings, batch=options.batch,
            threads=options.threads, device=options.device, seed=options.seed, clock=options.clock,
        )  # fmt: skip

    def _load_or_train_start(self, state: dict[str, Any] | None) -> int:
        """Load or train the start; return how many training batches that took."""
        task, path = self.task, self.folder / START
        checkpoint = self.options.checkpoint or self.cfg.get('load_from')
        if checkpoint:
            content = checkpoint_io.read(checkpoint, self.options.trust)
            weights.load_exactly(task.model, weights.state_dict_of(content, checkpoint), checkpoint)
            return 0
        if state and path.is_file():
            weights.load_exactly(task.model, weights.state_dict_of(checkpoint_io.read(path), path), path)
            return START_STEPS
        self.say(f'no CHECKPOINT: the start is trained for {START_STEPS} steps first')
        for hook in self.cfg.get('custom_hooks') or []:
            if hook.get('type') == 'WarmStartHook':
                arguments = {key: value for key, value in hook.items() if key != 'type'}
                preprocessor = task.model.data_preprocessor
                WarmStartHook(**arguments).pretrain_(task.model.backbone, preprocessor.mean, preprocessor.std)
        losses = list(task.train(0, START_STEPS))
        self.say(f'start: loss {losses[0]:.3f} -> {statistics.mean(losses[-10:]):.3f}')
        if is_main_process():
            checkpoint_io.write(path, dict(state_dict=task.model.state_dict()), force=True)
        return START_STEPS

    def _measure_start(self, state: dict[str, Any] | None) -> None:
        """Set the meter, the figures of the start, the limits and the predictors."""
        options, task = self.options, self.task
        timing = Timing(
            batches=[options.batch], rounds=options.rounds, clock=options.clock, device=options.device,
            threads=options.threads,
        )  # fmt: skip
        x, model = task.example(options.size, options.batch), copy.deepcopy(task.model)
        if self.is_elsewhere:
            assert self.table is not None
            self.meter = TableMeter(self.table.predict, model, task.segmentation, x)
        else:
            self.meter = self.meter_class(model, options.of, task.segmentation, x, options.mode, timing)
        start_ms, backbone_ms = self.meter.start_ms()
        rest_ms = start_ms - backbone_ms
        if state:  # the target stays what it was
            start_ms = read_trace(self.folder / TRACE)[0]['measured']
        self.start = self.meter.figures(model, start_ms)
        budget = self.budget.of_start(self.start)
        self.limits = budget.limits()
        if 'memory' in self.limits:
            raise UserError(f'--method {self.method} cannot aim at memory; use --target-latency, -params or -macs')
        if not budget.unmet(self.start):
            costs = ', '.join(QUANTITIES[name].format(getattr(self.start, name)) for name in self.limits)
            raise UserError(f'the budget ({budget}) is met already: the start has {costs}. Start from a larger network')
        self._set_predictors(rest_ms)
        self.published = self._predict_published()

    def _set_predictors(self, rest_ms: float) -> None:
        backbone, start = self.task.model.backbone, self.start
        family, arch = family_of(backbone), backbone.explicit(backbone.settings)
        counts: dict[str, Any] = dict(
            params=ParameterCounter(family),
            macs=partial(backbone_macs, family, tuple(self.options.size)),
        )
        self.predictors = {}
        for name in self.quantities:
            if name == 'latency_ms':
                assert self.table is not None
                whole = WholeLatency(self.table.predict, arch, start.latency_ms, start.latency_ms - rest_ms)
                self.predictors[name] = whole
            else:
                self.predictors[name] = WholeCount(counts[name], arch, getattr(start, name))

    def _start_record(self) -> dict[str, Any]:
        """Return the first record of the trace."""
        loss, start, backbone = self.task.score(), self.start, self.task.model.backbone
        self.say(f'start: {start.latency_ms:.1f} ms, {start.params / 1e6:.2f} M parameters, loss {loss:.4f}')
        arch = backbone.explicit(backbone.settings)
        return dict(number=0, arch=arch, loss=loss, measured=start.latency_ms, params=start.params, macs=start.macs)

    def _check_reachable(self, smallest: dict[str, Any]) -> None:
        """Refuse limits that the smallest network of the space exceeds."""
        for name, predict in self.predictors.items():
            least, limit, quantity = predict(smallest), self.limits[name], QUANTITIES[name]
            if least > limit * (1 + CLOSE):
                raise UserError(
                    f'the smallest network of this space takes about {quantity.format(least)} of {quantity.name} here, '
                    f'and the target is {quantity.format(limit)}: neck and head alone take '
                    f'{quantity.format(predict.rest)}. Use a smaller --size, --of backbone, or a config with a smaller '
                    'head'
                )

    def _predict_published(self) -> dict[str, dict[str, float]]:
        """Return what the published networks of the family cost by prediction, up to the cost of the start."""
        family = family_of(self.task.model.backbone)
        cls: Any = FAMILIES[family]
        found = {}
        for name in cls.ARCHS:
            costs = {goal: predict(cls.explicit(name)) for goal, predict in self.predictors.items()}
            if all(cost <= getattr(self.start, goal) * (1 + CLOSE) for goal, cost in costs.items()):
                found[f'{family}_{name}'] = costs
        return found

    def published_that_fit(self) -> list[str]:
        """Return the published networks of the family that meet all limits by prediction."""
        return [
            name
            for name, costs in self.published.items()
            if all(cost <= self.limits[goal] * (1 + CLOSE / 2) for goal, cost in costs.items())
        ]

    def _identity(self) -> dict[str, Any]:
        """Return what a search that is resumed must share with its beginning."""
        names = ('seed', 'size', 'batch', 'mode', 'of', 'by', 'recover', 'images', 'device')
        return {name: str(getattr(self.options, name)) for name in names} | dict(
            budget=str(self.budget), method=self.method
        )

    def _write_state(self, content: dict[str, Any]) -> None:
        """Write what ``--resume`` continues from."""
        checkpoint_io.write(self.folder / STATE, content | dict(identity=self._identity()), force=True)

    def _read_state(self) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.is_file():
            self.say('nothing to resume: the search starts from its beginning')
            return None
        content: dict[str, Any] = dict(checkpoint_io.read(path))
        saved, own = content.get('identity') or {}, self._identity()
        if differing := [f'{key}: {own[key]}, there {saved.get(key)}' for key in own if saved.get(key) != own[key]]:
            raise UserError(
                f'--resume: {self.folder} has another search ({"; ".join(differing)}); use its options, or '
                'another --work-dir'
            )
        return content


def summary(
    figures: Figures,
    start: Figures,
    limits: dict[str, float],
    losses: tuple[float, float],
    published: Sequence[str] = (),
    how: str = 'measured',
) -> str:
    """Return the result in one or two sentences, which can be negative.

    Args:
        figures: Of the result, measured.
        start: Of the start.
        limits: What was aimed at.
        losses: Of the start, and of the result.
        published: Published networks that meet the limits, too.
        how: Where the costs come from.
    """
    parts = []
    for name, limit in limits.items():
        value, text = getattr(figures, name), QUANTITIES[name].format
        missed = value > limit * (1 + CLOSE)
        parts.append(f'{text(value)} of {text(limit)} ({how}){" MISSED" if missed else ""}')
    before, after = losses
    found = (
        f'{", ".join(parts)}; {figures.params / 1e6:.2f} M parameters, loss {after:.3f}. The start has '
        f'{start.latency_ms:.1f} ms, {start.params / 1e6:.2f} M and {before:.3f}.'
    )
    if after > before * (1 + CLOSE):
        found += f' The loss rose by {after / before - 1:.0%}: train the result, or search with more --recover steps.'
    if published:
        found += (
            f' {some(published)} {"meets" if len(published) == 1 else "meet"} the budget, too, by prediction: train '
            'one next to the result before you choose.'
        )
    return found
