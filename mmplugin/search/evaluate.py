"""The loss of sub-networks on images that were held out, with norm statistics of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .elastic import ElasticBackbone
from .elastic_space import ElasticSpace, State
from .greedy import Losses
from .task import Task

CALIBRATION = 4  # batches at least for the norm statistics of a sub-network
CALIBRATION_IMAGES = 32


class Evaluator:
    """Scores networks of a space, all on the same images and with statistics from the same batches.

    With several processes, each scores some of the networks.

    Args:
        task: A model whose backbone is an ``ElasticBackbone``, and its data.
        space: The networks.
        first: Number of the first training batch for norm statistics.
    """

    def __init__(self, task: Task, space: ElasticSpace, first: int):
        self.task, self.space = task, space
        self.elastic: ElasticBackbone = task.model.backbone
        self.calibration_batches = max(CALIBRATION, -(-CALIBRATION_IMAGES // task.batch_size))
        self.calibration: list[Any] = list(task.batches(first, self.calibration_batches))
        self.hold_out: list[Any] = list(task.hold_out())

    def __call__(self, states: Sequence[State]) -> list[Losses]:
        """Return the losses of each network by batch."""
        world, rank = get_world_size(), get_rank()
        own = {i: self.losses(state) for i, state in enumerate(states) if i % world == rank}
        found = {i: losses for part in all_gather_object(own) for i, losses in part.items()} if world > 1 else own
        return [found[i] for i in range(len(states))]

    @torch.no_grad()
    def losses(self, state: State) -> list[float]:
        """Return the losses of one network by batch."""
        with self.selected(state):
            self.task.model.eval()
            found = [float(self.task.loss(batch)) for batch in self.hold_out]
            self.task.model.train()
        return found

    @contextmanager
    def selected(self, state: State) -> Iterator[dict[str, Tensor]]:
        """Select a network with norm statistics of its own, in the neck and heads, too; yield those of the backbone.

        At the end, all statistics are those of the large network again.
        """
        model = self.task.model
        model.train()
        self.elastic.select(self.space.arch(state), self.space.sources(state))
        self.elastic.start_statistics()
        inside = set(self.elastic.modules())
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m not in inside]
        saved = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
            with torch.no_grad():
                for number, batch in enumerate(self.calibration):
                    self.task.loss(batch, number)
            yield self.elastic.statistics()
        finally:
            for norm, (momentum, buffers) in zip(norms, saved, strict=True):
                norm.momentum = momentum
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
            self.elastic.select(None)
