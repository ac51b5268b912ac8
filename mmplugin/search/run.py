"""What every search does before and after its method: data, latency table, start, budget and work folder."""

import argparse
import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable
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
from mmplugin.data.seeded_sampler import seed_everything
from mmplugin.engine import weights
from mmplugin.errors import UserError
from mmplugin.hooks.layer_scale import LayerScaleHook, set_layer_scales_
from mmplugin.hooks.warm_start import WarmStartHook
from mmplugin.text import duration, some

from .budget import CLOSE, QUANTITIES, Budget, Figures
from .conditions import PROBES, RUNTIMES
from .latency import LatencyTable
from .result import STATE, TRACE, Found, read_trace
from .space import Space
from .subnet import family_of
from .table_io import check_here
from .task import Task
from .whole import Meter, ParameterCounter, TableMeter, WholeCount, WholeLatency, backbone_macs

IMAGES, START_STEPS = 64, 150
TABLE, START = 'latency.json', '.start.pth'
TABLE_ROUNDS = 12  # at least, of the networks of a table


def check_runtime(options: argparse.Namespace) -> None:
    """Refuse options that do not go with the measurement in a runtime."""
    if options.of != 'backbone':
        raise UserError(
            f'the search measures backbones in {options.mode}: add --of backbone; a target in % is then of the backbone'
        )
    if options.device != 'cpu' or options.batch != 1:
        raise UserError(f'the search measures one image on the CPU in {options.mode}; omit --device and --batch')


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
    report: Callable[[Found], None] = staticmethod(lambda found: None)  # called with each network when it is written

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
        if options.mode in RUNTIMES:
            check_runtime(options)
        if not self.quantities:
            raise UserError('there is no budget: give a latency, parameters or MACs')
        if 'memory' in self.quantities:
            raise UserError(f'--method {self.method} cannot aim at memory; use --target-latency, -params or -macs')
        state = self._read_state() if options.resume else None
        self.task = Task(self.cfg, options.images or IMAGES, options.seed, options.device)
        self._check_model()
        has_start = self._load_start(state)
        self._take_table()
        self._measure_start(state)  # its weights do not matter
        self._check_budget()
        if not has_start:
            self._train_start()
        return self._search(state)

    def _check_model(self) -> None:
        """Refuse a model that the method cannot use, before anything is measured or trained."""

    def _check_budget(self) -> None:
        """Refuse a budget that no network of the space meets, before anything is trained."""
        raise NotImplementedError

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
        if 'latency_ms' not in self.quantities:
            return
        options, family, own = self.options, family_of(self.task.model.backbone), self.folder / TABLE
        conditions: dict[str, Any] = dict(family=family, size=tuple(options.size), threads=torch.get_num_threads())
        conditions |= {name: getattr(options, name) for name in ('mode', 'batch', 'device', 'clock')}
        path = options.latency_table or (own if options.resume and own.is_file() else None)
        if self.table:
            check_here(self.table.conditions, 'the latency table', conditions)
        elif path:
            self.table = LatencyTable.load(path, **conditions)
        else:
            self.table = self._measured_table(family)
        if self.is_elsewhere and options.of != 'backbone':
            raise UserError('the latency table has times of backbones on another device: add --of backbone')
        self.say(f'latency table: {self.table.check()}')
        self.table.save(own)

    def _measured_table(self, family: str) -> LatencyTable:
        options = self.options
        self.say(f'measuring the latency of the parts of {family} networks at {options.size[0]}x{options.size[1]}')
        return LatencyTable.measure(
            family, tuple(options.size), options.mode, around=self.settings, batch=options.batch,
            threads=options.threads, device=options.device, rounds=max(TABLE_ROUNDS, options.rounds),
            seed=options.seed, clock=options.clock,
        )  # fmt: skip

    def _load_start(self, state: dict[str, Any] | None) -> bool:
        """Load the start, if it was trained before."""
        model, path = self.task.model, self.folder / START
        checkpoint = self.options.checkpoint or self.cfg.get('load_from')
        if checkpoint:
            content, self.batches_used = checkpoint_io.read(checkpoint, self.options.trust), 0
        elif state and path.is_file():
            checkpoint, content, self.batches_used = path, checkpoint_io.read(path), START_STEPS
        else:
            return False
        weights.load_exactly(model, weights.state_dict_of(content, checkpoint), checkpoint)
        return True

    def _train_start(self) -> None:
        """Train and keep the start."""
        task = self.task
        self.say(f'no CHECKPOINT: the start is trained for {START_STEPS} steps first')
        seed_everything(task.seed)
        for hook in self._hooks(LayerScaleHook):
            set_layer_scales_(task.model.backbone, hook.value)
        for hook in self._hooks(WarmStartHook):
            preprocessor = task.model.data_preprocessor
            hook.pretrain_(task.model.backbone, preprocessor.mean, preprocessor.std)
        losses = list(task.train(0, START_STEPS))
        self.batches_used = START_STEPS
        self.say(f'start: loss {losses[0]:.3f} -> {statistics.mean(losses[-10:]):.3f}')
        if is_main_process():
            checkpoint_io.write(self.folder / START, dict(state_dict=task.model.state_dict()), force=True)

    def _hooks(self, kind: type) -> list[Any]:
        """Return the hooks of a class that the config has."""
        hooks = [dict(hook) for hook in self.cfg.get('custom_hooks') or []]
        return [kind(**hook) for hook in hooks if hook.pop('type') == kind.__name__]

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
        elif options.mode in RUNTIMES:
            from .in_runtime import RuntimeMeter

            self.meter = RuntimeMeter(model, task.segmentation, x, options.mode, timing)
        else:
            self.meter = self.meter_class(model, options.of, task.segmentation, x, options.mode, timing)
        start_ms, backbone_ms = self.meter.start_ms()
        rest_ms = start_ms - backbone_ms
        if state:  # the target stays what it was
            start_ms = read_trace(self.folder / TRACE)[0]['measured']
        self.start = self.meter.figures(model, start_ms)
        budget = self.budget.of_start(self.start)
        self.limits = budget.limits()
        if not budget.unmet(self.start):
            costs = ', '.join(QUANTITIES[name].format(getattr(self.start, name)) for name in self.limits)
            raise UserError(
                f'the budget ({budget}) is met already: the start has {costs}. Use a smaller budget, or start from a '
                'larger network: --from'
            )
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
                is_whole = self.options.of == 'model'
                rest = f': neck and head alone take {quantity.format(predict.rest)}' if is_whole else ''
                ways = ['a larger target', *([] if name == 'params' else ['a smaller --size'])]
                ways += ['--of backbone', 'a config with a smaller head'] if is_whole else ['another family']
                raise UserError(
                    f'the smallest network of this space takes about {quantity.format(least)} of {quantity.name} here, '
                    f'and the target is {quantity.format(limit)}{rest}. Use {", ".join(ways[:-1])}, or {ways[-1]}'
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
        names = (
            'seed', 'size', 'batch', 'mode', 'of', 'by', 'recover', 'images', 'device', 'threads', 'clock',
            'checkpoint', 'latency_table',
        )  # fmt: skip
        settings = {key: value for key, value in self.cfg.to_dict().items() if key not in ('work_dir', 'launcher')}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return {name: str(getattr(self.options, name)) for name in names} | dict(
            budget=str(self.budget), method=self.method,
            config=f'{Path(self.cfg.filename or "").stem} with settings {digest}',
            fixed=str(self.space and sorted(self.space.fixed)),
        )  # fmt: skip

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
        differing = [
            f'{key}: {some([own[key]])}, there {some([saved.get(key)])}' for key in own if saved.get(key) != own[key]
        ]
        if differing:
            raise UserError(
                f'--resume: {self.folder} has another search ({"; ".join(differing)}); use its options, or another '
                '--work-dir'
            )
        return content
