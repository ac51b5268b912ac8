"""``mmplugin search --method joint``: the search of EfficientFormerV2 (Li et al., ICCV 2023, Section 4.2).

The network of the config is the supernet. Its channels are sorted by importance once, so that the first ones are the
best ones; it is trained by the sandwich rule; then it is slimmed action by action, until the measured network meets the
budget. Several targets take several networks from one supernet.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, broadcast, get_world_size, is_main_process
from mmengine.model import revert_sync_batchnorm
from torch import nn

from mmplugin.convert import checkpoint_io
from mmplugin.errors import UserError

from .budget import CLOSE, QUANTITIES, Budget
from .elastic import ElasticBackbone
from .elastic_space import ElasticSpace, State
from .evaluate import Evaluator
from .greedy import Greedy, Step
from .latency import LatencyTable
from .prune import RECALIBRATION, Settings
from .result import TRACE, Found, Result, summary, write_trace
from .run import Run
from .shared import SharedMeter, from_main
from .supernet import elastic_space_of, extracted, sort_

STEPS, RECOVER = 200, 60  # of the supernet, and of each network that is found
FEW_IMAGES = 8  # in a batch
SAVE = 50  # steps between two checkpoints of the supernet
MISSES = 3  # measurements that may miss the target before the search ends
SUPERNET = '.supernet.pth'
Trace = list[dict[str, Any]]


@dataclass
class Progress:
    """How far a search is.

    Args:
        trace: A record per action.
        way: What the search knew before the first action for the current target, and after each one.
        misses: Measurements that missed the current target.
        done: Targets that are reached.
    """

    trace: Trace
    way: list[dict[str, Any]]
    misses: int = 0
    done: int = 0


class JointRun(Run):
    """The joint search of size and speed."""

    method = 'joint'
    meter_class = SharedMeter
    space_: ElasticSpace
    evaluator: Evaluator
    targets: list[tuple[Path, dict[str, float]]]  # folder and limits, the easiest one first

    def _search(self, state: dict[str, Any] | None) -> Result:
        self._prepare_backbone_()
        trace = [self._start_record()]
        if not state and is_main_process():
            write_trace(self.folder / TRACE, trace)
        self._train_supernet_(state)
        self.evaluator = Evaluator(self.task, self.space_, self._take(0))
        self._take(self.evaluator.calibration_batches)
        self._after_supernet()
        costs = {name: partial(self._cost, predict) for name, predict in self.predictors.items()}
        greedy = Greedy(
            self.space_, self.space_.largest(), self.evaluator, costs, self.limits, self.is_exact, 1 - CLOSE,
            ahead=get_world_size(),
        )  # fmt: skip
        progress = Progress(trace, [copy.deepcopy(greedy.memory())])
        if state and 'greedy' in state:
            memory = json.loads(state['greedy'])
            progress = Progress(**memory['progress'])
            greedy.remember(progress.way[-1])
            self.batches_used = memory['batches_used']
            if latency := self.predictors.get('latency_ms'):
                latency.factor, latency.rest = memory['latency']
            self.say(f'resumed after {len(progress.trace) - 1} actions')
        for folder, limits in self.targets[progress.done :]:
            result = self._reach(greedy, limits, progress, folder)
            progress = Progress(progress.trace, progress.way[-1:], done=progress.done + 1)
            if progress.done < len(self.targets):
                self._save_greedy(progress)
        (self.folder / SUPERNET).unlink(missing_ok=True)
        return result

    def say(self, text: str) -> None:
        """Print a line of progress."""
        if is_main_process():
            super().say(text)

    def _take_table(self) -> None:
        def table() -> LatencyTable | None:
            super(JointRun, self)._take_table()
            if self.table:
                self.table._again = None  # cannot be sent to other processes
            return self.table

        self.table = from_main(table)

    def _check_model(self) -> None:
        frozen = self.task.model.backbone.frozen_stages
        if frozen >= 0:
            raise UserError(
                f'frozen_stages is {frozen}, but a supernet trains all stages; add --cfg-options '
                'model.backbone.frozen_stages=-1, or use --method prune'
            )

    def _check_budget(self) -> None:
        self.space_, self.targets = self._make_space(), self._targets()
        self.limits = self.targets[-1][1]  # the hardest ones
        self._check_reachable(self.space_.arch(self.space_.smallest()))

    def _prepare_backbone_(self) -> None:
        backbone, batch = self.task.model.backbone, self.task.batch_size
        if backbone.norm_eval:
            backbone.norm_eval = False
            self.say('norm_eval is off in the search: each sub-network needs norm statistics of its own')
        if batch < FEW_IMAGES:
            self.say(
                f'norm statistics of sub-networks come from batches of {batch}; {FEW_IMAGES} images and more are '
                f'better: --cfg-options train_dataloader.batch_size={FEW_IMAGES}'
            )
        if get_world_size() > 1:
            self.task.model = revert_sync_batchnorm(self.task.model)  # processes run different networks
        for tensor in self.task.model.state_dict().values():
            broadcast(tensor)  # processes may differ by rounding

    def _make_space(self) -> ElasticSpace:
        own = elastic_space_of(self.task.model)
        if self.space is None:
            return own
        if not isinstance(self.space, ElasticSpace) or self.space.start != own.start:
            raise UserError(
                f'space is {self.space}; allowed for {self.method}: ElasticSpace.below the start {own.start}'
            )
        return self.space

    @property
    def is_exact(self) -> bool:
        """Whether all actions are evaluated in each step."""
        return self.options.exact

    def _after_supernet(self) -> None:
        """Say what else is known about the supernet."""

    def _cost(self, predict: Any, state: State) -> float:
        return predict(self.space_.arch(state))

    def _take(self, count: int) -> int:
        """Reserve training batches, and return the number of the first one."""
        first, self.batches_used = self.batches_used, self.batches_used + count
        return first

    def _targets(self) -> list[tuple[Path, dict[str, float]]]:
        """Return the folder and the limits of each target, the easiest one first."""
        if not self.options.targets:
            return [(self.folder, self.limits)]
        quantity, found = QUANTITIES['latency_ms'], []
        for text in self.options.targets:
            value, is_share = quantity.parse(text)
            limit = value * self.start.latency_ms if is_share else value
            if limit >= self.start.latency_ms:
                raise UserError(f'--targets {text} is met already: the start has {self.start.latency_ms:.3g} ms')
            found.append((self.folder / text.replace('%', 'pct'), {**self.limits, 'latency_ms': limit}))
        return sorted(found, key=lambda target: -target[1]['latency_ms'])

    def _train_supernet_(self, state: dict[str, Any] | None) -> None:
        from .sandwich import Sandwich

        task, path = self.task, self.folder / SUPERNET
        steps = STEPS if self.options.steps is None else self.options.steps
        self._take(sort_(task, self.batches_used))
        task.model.backbone = ElasticBackbone(task.model.backbone)
        sandwich = Sandwich(task, self.space_, steps, self._take(steps))
        if state and path.is_file():
            sandwich.restore(dict(checkpoint_io.read(path)))
            self.say(f'the supernet has {sandwich.done} of {steps} steps')
        for losses in sandwich.train():
            if sandwich.done % SAVE == 0 or sandwich.done == steps:
                self._save_supernet(sandwich.state())
                largest, *_, smallest = losses
                self.say(f'supernet: step {sandwich.done} of {steps}, loss {largest:.3f}, smallest {smallest:.3f}')

    def _save_supernet(self, content: dict[str, Any]) -> None:
        if is_main_process():
            checkpoint_io.write(self.folder / SUPERNET, content, force=True)
            self._write_state({})

    def _reach(self, greedy: Greedy, limits: dict[str, float], progress: Progress, folder: Path) -> Result:
        """Slim until all limits are met, and write the network that is found."""
        greedy.limits = self.limits = dict(limits)
        trace, way = progress.trace, progress.way
        while True:
            while step := greedy.step():
                trace.append(self._record(step, len(trace), greedy.state))
                way.append(copy.deepcopy(greedy.memory()))
                self._save_greedy(progress)
            network = extracted(self.task.model, self.space_, greedy.state)
            arch = self.space_.arch(greedy.state)
            measured = self.start.latency_ms * self.meter.ratio(network)
            latency, limit = self.predictors.get('latency_ms'), limits.get('latency_ms')
            if not latency or not limit or progress.misses == MISSES:
                break
            predicted = latency(arch)
            too_slow, too_fast = measured > limit * (1 + CLOSE / 2), measured < limit * (1 - CLOSE)
            if not too_slow and not (too_fast and len(way) > 1):
                break
            progress.misses += 1
            latency.correct(arch, measured)
            self.say(f'measured {measured:.3g} ms, predicted {predicted:.3g}, target {limit:.3g}: the search goes on')
            while too_fast and len(way) > 1 and not greedy.unmet():
                way.pop()
                trace.pop()
                greedy.remember(way[-1])
        return self._finish(greedy, network, measured, limits, trace, folder)

    def _record(self, step: Step, number: int, state: State) -> dict[str, Any]:
        costs = dict(step.costs)
        record: dict[str, Any] = dict(
            number=number, arch=self.space_.arch(state), loss=step.loss,
            actions=[
                dict(size=step.action, before=step.before, after=step.after, importance=step.drop, gain=step.gain)
            ],
            error=step.error, evaluated=step.evaluated,
        )  # fmt: skip
        if 'latency_ms' in costs:
            record['cost'] = costs.pop('latency_ms')
        predicted = ', '.join(QUANTITIES[name].format(cost) for name, cost in step.costs.items())
        self.say(
            f'action {number}: {step.action} {step.before:g} -> {step.after:g}, loss {step.loss:.4f} '
            f'({step.drop:+.4f}), {predicted} predicted'
        )
        return record | costs

    def _finish(
        self, greedy: Greedy, network: nn.Module, measured: float, limits: dict[str, float], trace: Trace, folder: Path
    ) -> Result:
        """Train a network that was found for some steps, and write it."""
        options, task = self.options, self.task
        recover = RECOVER if options.recover is None else options.recover
        uniform = self._uniform(greedy)
        with self._as_model(network):
            task.recalibrate_(self._take(RECALIBRATION), RECALIBRATION)
            before = loss = task.score()
            if recover:
                for _ in task.train(self._take(recover), recover, Settings().lr_factor):
                    pass
                task.recalibrate_(self._take(RECALIBRATION), RECALIBRATION)
                loss = task.score()
        figures = self.meter.figures(network, measured)
        own = trace[-1].get('supernet_loss', trace[-1]['loss'])  # a network may meet two targets
        trace[-1] |= dict(measured=measured, params=figures.params, macs=figures.macs, pruned_loss=before)
        trace[-1] |= dict(loss=loss, supernet_loss=own)
        how = 'predicted' if self.is_elsewhere else 'measured'
        text = summary(figures, self.start, limits, (trace[0]['loss'], loss), self.published_that_fit(), how)
        scaled = 'does not reach the budget' if uniform is None else f'has {uniform:.3f}'
        text += f' In the supernet, its loss is {own:.3f}; uniform scaling of the start {scaled}.'
        result = Result(self.cfg, network, task.dataset.metainfo, text, copy.deepcopy(trace))
        if is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            result.save(folder)
            self.report(Found(folder, result, Budget(**dict[str, Any](limits)), self.space_.kept(greedy.state)))
        barrier()
        return result

    def _uniform(self, greedy: Greedy) -> float | None:
        """Return the loss of the widest network of equal width and depth shares that costs as little."""
        for percent in range(99, 19, -1):
            state = self.space_.uniform(percent / 100)
            costs = greedy.cost(state)
            if all(cost <= greedy.limits[name] * (1 + CLOSE / 2) for name, cost in costs.items()):
                (losses,) = self.evaluator([state])
                return sum(losses) / len(losses)
        return None

    @contextmanager
    def _as_model(self, network: Any) -> Iterator[None]:
        supernet, self.task.model = self.task.model, network
        try:
            yield
        finally:
            self.task.model = supernet

    def _save_greedy(self, progress: Progress) -> None:
        if not is_main_process():
            return
        latency = self.predictors.get('latency_ms')
        memory = dict(
            progress=vars(progress),
            batches_used=self.batches_used,
            latency=[latency.factor, latency.rest] if latency else [],
        )
        write_trace(self.folder / TRACE, progress.trace)
        self._write_state(dict(greedy=json.dumps(memory)))

    def _identity(self) -> dict[str, Any]:
        names = ('steps', 'exact', 'targets', 'start', 'grow')
        return super()._identity() | {name: str(getattr(self.options, name)) for name in names}
