"""``mmplugin search --method prune``: rounds of pruning and recovery until the measured model meets the budget."""

import json
from dataclasses import asdict
from typing import Any

from torch import nn

from mmplugin.errors import UserError

from .budget import CLOSE, QUANTITIES
from .narrow import readers_of
from .prune import Pruner, Round, Settings, space_of
from .result import TRACE, Found, Result, read_trace, summary, write_trace
from .run import Run
from .space import Space
from .subnet import arguments_of

RECOVER = 40
EXTRA_ROUNDS = 3  # after the prediction met the target, but the measurement did not
Trace = list[dict[str, Any]]


class PruneRun(Run):
    """Parameter reallocation of EfficientViT, see ``Pruner``."""

    method = 'prune'
    extra = 0  # rounds after which the prediction met a target
    undone = 0  # rounds that were repeated

    def _own_space(self) -> Space:
        own = space_of(self.task.model)
        if self.space and self.space.start != own.start:
            raise UserError(f'the space starts from {self.space.start}, but the config from {own.start}')
        return self.space or own

    def _check_budget(self) -> None:
        self._check_reachable(self._own_space().smallest())

    def _search(self, state: dict[str, Any] | None) -> Result:
        options = self.options
        recover = RECOVER if options.recover is None else options.recover
        settings = Settings(recover=recover, by_latency=options.by == 'latency')
        pruner = Pruner(self.task, next(iter(self.predictors.values())), settings)
        pruner.space = self._own_space()
        pruner.batches_used = self.batches_used
        trace = [self._start_record()]
        if state:
            trace = self._restore_(pruner, state)
        self._rounds_(pruner, trace)
        figures = self.meter.figures(self.task.model, trace[-1]['measured'])
        how = 'predicted' if self.is_elsewhere else 'measured'
        losses = trace[0]['loss'], trace[-1]['loss']
        text = summary(figures, self.start, self.limits, losses, self.published_that_fit(), how)
        result = Result(self.cfg, self.task.model, self.task.dataset.metainfo, text, trace)
        result.save(self.folder)
        self.report(Found(self.folder, result, self.budget))
        return result

    def _rounds_(self, pruner: Pruner, trace: Trace) -> None:
        """Prune until all limits are met, and append a record per round to the trace."""
        while (goal := self._goal(trace[-1])) and self.extra <= EXTRA_ROUNDS:
            limit = self.limits[goal]
            pruner.aim_(self.predictors[goal], getattr(self.start, goal))
            before = pruner.state()
            record = pruner.round(limit)
            if not record.actions:
                pruner.restore_(before)
                self.say(f'nothing is left to remove that reduces {QUANTITIES[goal].name}: the search ends')
                break
            record.measured = self.start.latency_ms * self.meter.ratio(self.task.model)
            if goal == 'latency_ms' and record.measured < limit * (1 - CLOSE) and self.undone < EXTRA_ROUNDS:
                # Too many groups left: the table is wrong here, so it is set right at both ends of the round.
                self.undone += 1
                ends = (trace[-1]['arch'], trace[-1]['measured']), (pruner.arch, record.measured)
                self.predictors[goal].pass_through(*ends)
                pruner.restore_(before)
                self.say(f'round {record.number} is repeated: {record.measured:.3g} ms is less than needed')
                continue
            self.extra += record.cost <= limit
            figures = self.meter.figures(self.task.model, record.measured)
            record.params, record.macs = figures.params, figures.macs
            if 'latency_ms' in self.predictors:
                self.predictors['latency_ms'].correct(pruner.arch, record.measured)
            trace.append(asdict(record))
            self._save_state(pruner, trace)
            self.say(_line(record, goal, limit))

    def _goal(self, last: dict[str, Any]) -> str | None:
        """Return the first limit that is not met. A latency may exceed it by less than it varies."""
        own = dict(last, latency_ms=last['measured'] / (1 + CLOSE / 2))
        return next((name for name, limit in self.limits.items() if own[name] > limit), None)

    def _save_state(self, pruner: Pruner, trace: Trace) -> None:
        latency = self.predictors.get('latency_ms')
        write_trace(self.folder / TRACE, trace)
        self._write_state(
            dict(
                state_dict=self.task.model.state_dict(), arch=json.dumps(pruner.arch), rounds=pruner.rounds,
                batches_used=pruner.batches_used, extra=self.extra, undone=self.undone,
                latency=[latency.factor, latency.rest] if latency else [],
            )
        )  # fmt: skip

    def _restore_(self, pruner: Pruner, state: dict[str, Any]) -> Trace:
        """Continue after the last complete round."""
        arch, model = json.loads(state['arch']), self.task.model
        model.backbone = type(model.backbone)(arch, **arguments_of(model.backbone))
        for key, axis in readers_of(model).items():
            conv = model.get_submodule(key.removesuffix('.weight'))
            stage = int(axis.rpartition('.')[2])
            conv.in_channels = arch['widths'][stage]
            conv.weight = nn.Parameter(conv.weight.new_empty(len(conv.weight), conv.in_channels, *conv.kernel_size))
            model.neck.in_channels = type(model.neck.in_channels)(model.backbone.out_channels)
        model.load_state_dict(state['state_dict'])
        pruner.space = pruner.space.at(arch)
        pruner.rounds, pruner.batches_used = state['rounds'], state['batches_used']
        self.extra, self.undone = state['extra'], state['undone']
        if latency := self.predictors.get('latency_ms'):
            latency.factor, latency.rest = state['latency']
        trace = read_trace(self.folder / TRACE)[: state['rounds'] + 1]
        self.say(f'resumed after round {pruner.rounds}')
        return trace


def _line(record: Round, goal: str, limit: float) -> str:
    text = QUANTITIES[goal].format
    own: Any = record.measured if goal == 'latency_ms' else getattr(record, goal)
    return (
        f'round {record.number}: {len(record.actions)} groups removed, loss {record.pruned_loss:.4f}, after '
        f'recovery {record.loss:.4f}; {text(record.cost)} predicted, {text(own)} measured, target {text(limit)}'
    )
