"""Parameter reallocation by Taylor pruning, the method of EfficientViT (Liu et al., CVPR 2023, Sections 2.3 and 3.1).

In each round, the least important groups of channels for each millisecond saved are removed, and the rest is trained
for some steps. The paper states neither the order of removal nor the training between rounds: see docs/search.md.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .importance import Importance, at_random, magnitude, taylor
from .narrow import knows_neck, narrow_, readers_of
from .objective import plan
from .pools import Pools
from .space import Space, sizes_of
from .subnet import family_of
from .task import Task

ROUND = 0.1  # share of the start's cost that a round removes
RECALIBRATION = 16  # batches for the statistics of norms that train
Cost = Callable[[dict[str, Any]], float]  # of an explicit arch


@dataclass(frozen=True)
class Settings:
    """How to prune.

    Args:
        recover: Training steps after each round.
        batches: Batches for the importance of channels.
        score: 'taylor', or the baselines 'magnitude' and 'random'.
        by_latency: Order groups by importance for each millisecond saved, else by importance alone.
        lr_factor: Factor of the config's learning rate in recovery.
    """

    recover: int = 60
    batches: int = 16
    score: str = 'taylor'
    by_latency: bool = True
    lr_factor: float = 0.5


@dataclass
class Round:
    """What one round did; a line of the trace."""

    number: int
    arch: dict[str, Any]
    cost: float  # predicted
    pruned_loss: float  # on the hold-out, before recovery
    loss: float  # after it
    actions: list[dict[str, Any]] = field(default_factory=list)
    measured: float | None = None  # milliseconds
    params: float | None = None
    macs: float | None = None


def space_of(model: Any) -> Space:
    """Return what can be removed from the backbone of a model."""
    backbone = model.backbone
    family, arch = family_of(backbone), backbone.settings
    built = backbone.num_stages
    missing = [size for size in sizes_of(family, arch) if (stage := _stage_of(size)) is not None and stage >= built]
    fixed = [*missing, *([] if knows_neck(model) else ['width'])]
    return Space.below(family, arch, fixed)


def _stage_of(size: str) -> int | None:
    """Return the stage that a size belongs to, if it belongs to one."""
    kind, _, place = size.partition('.')
    if not place:
        return None
    return int(place.split('.')[0]) + (kind in ('downsample', 'merge'))  # these start the next stage


def blocks_of(arch: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return all blocks, each as stage and block."""
    return [(i, j) for i, depth in enumerate(arch['depths']) for j in range(depth)]


def importance_of(task: Task, pools: Pools, settings: Settings, first: int) -> Importance:
    """Return the importance of all channels of the model as it is."""
    readers = readers_of(task.model)
    if settings.score == 'taylor':
        batches = task.batches(first, settings.batches)
        result = taylor(task.model, pools, readers, batches, task.loss)
        task.model.train()  # freezes again what the config freezes
        return result
    if settings.score == 'magnitude':
        return magnitude(task.model, pools, readers)
    return at_random(pools, task.seed)


class Pruner:
    """Prunes the model of a task, a round at a time.

    Args:
        task: The model and its data. The model is changed.
        cost: Cost of an arch, usually predicted milliseconds.
        settings: How to prune.
    """

    def __init__(self, task: Task, cost: Cost, settings: Settings):
        self.task, self.cost, self.settings = task, cost, settings
        self.space = space_of(task.model)
        self.start_cost = cost(self.space.start)
        self.rounds = 0
        self.batches_used = 0

    def aim_(self, cost: Cost, start_cost: float) -> None:
        """Set the cost that rounds reduce, and what the start costs."""
        self.cost, self.start_cost = cost, start_cost

    @property
    def arch(self) -> dict[str, Any]:
        """The explicit arch of the model as it is."""
        return self.space.start

    def state(self) -> tuple[Any, ...]:
        """Return what ``restore_`` needs to undo a round."""
        return copy.deepcopy(self.task.model), self.space, self.rounds, self.batches_used

    def restore_(self, state: tuple[Any, ...]) -> None:
        """Undo what happened after ``state``."""
        self.task.model, self.space, self.rounds, self.batches_used = state

    def round(self, limit: float) -> Round:
        """Remove groups until the cost has fallen by a tenth of the start's, or to ``limit``; then recover."""
        task, settings = self.task, self.settings
        pools = Pools(self.space.family, self.arch)
        scores = importance_of(task, pools, settings, self._take(settings.batches))
        goal = max(limit, self.cost(self.arch) - ROUND * self.start_cost)
        sizes, actions = plan(
            self.space,
            sizes_of(self.space.family, self.arch),
            scores,
            lambda sizes: self.cost(self.space.arch(sizes)),
            goal,
            settings.by_latency,
        )
        gone = [(i, j) for i, j in blocks_of(self.arch) if not sizes[f'block.{i}.{j}']]
        with_all = {**sizes, **{f'block.{i}.{j}': 1 for i, j in gone}}
        narrow_(task.model, pools, self.space.arch(with_all), scores.kept(with_all), gone)
        self.space = self.space.at(self.space.arch(sizes))  # counts the blocks that are left
        task.recalibrate_(self._take(RECALIBRATION), RECALIBRATION)
        pruned_loss = loss = task.score()
        if settings.recover:
            for _ in task.train(self._take(settings.recover), settings.recover, settings.lr_factor):
                pass
            task.recalibrate_(self._take(RECALIBRATION), RECALIBRATION)  # running means lag behind quick changes
            loss = task.score()
        self.rounds += 1
        return Round(
            self.rounds, self.arch, self.cost(self.arch), pruned_loss, loss, [asdict(action) for action in actions]
        )

    def _take(self, count: int) -> int:
        """Reserve training batches, and return the number of the first one."""
        first, self.batches_used = self.batches_used, self.batches_used + count
        return first
