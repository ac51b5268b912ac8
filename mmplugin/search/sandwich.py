"""Training of a supernet by the sandwich rule (Yu and Huang, ICCV 2019), as in EfficientFormerV2, Algorithm 1.

Each iteration runs the largest, two random and the smallest network on one batch, and makes one optimizer step with the
mean of their gradients. With several processes, each runs some of the four networks, and the gradients are summed in
the order of one process: the weights are equal in every bit.
"""

import copy
import math
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import build_optim_wrapper
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmplugin.errors import UserError

from .elastic import ElasticBackbone
from .elastic_space import ElasticSpace, State
from .task import Task, rate_factor

DRAWN, REDRAWN = 64, 500  # random networks are of so many, which are drawn again after so many iterations
OWNERS = (0, 1, 2, 3), (0, 1, 1, 0)  # which process runs which network, for four processes and more, and for two


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Give all norms their running statistics back at the end."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


class Sandwich:
    """Trains all networks of a space at once.

    Norm statistics of the whole model are those of the largest network.

    Args:
        task: A model whose backbone is an ``ElasticBackbone``, and its data. The model is changed.
        space: The networks.
        steps: Number of steps.
        first: Number of the first training batch.
        lr_factor: Factor of the learning rate of the config.
    """

    def __init__(self, task: Task, space: ElasticSpace, steps: int, first: int, lr_factor: float = 1.0):
        self.task, self.space, self.steps, self.first = task, space, steps, first
        self.elastic: ElasticBackbone = task.model.backbone
        self.optimizer: Any = build_optim_wrapper(task.model, copy.deepcopy(task.cfg.optim_wrapper))
        self.rates = [group['lr'] * lr_factor for group in self.optimizer.param_groups]
        self.done = 0
        self._drawn: OrderedDict[int, list[State]] = OrderedDict()

    def states(self, step: int) -> list[State | None]:
        """Return the networks of a step; None is the largest one. They depend on the seed and the step only."""
        number, rng = step // REDRAWN, random.Random(f'{self.task.seed} {step}')
        if number not in self._drawn:
            draw = random.Random(f'{self.task.seed} drawn {number}')
            self._drawn = OrderedDict({number: [self.space.random(draw) for _ in range(DRAWN)]})
        return [None, *rng.sample(self._drawn[number], 2), self.space.smallest()]

    def train(self) -> Iterator[list[float]]:
        """Run the steps that are left, and yield the losses of the largest, the random and the smallest networks."""
        self.task.model.train()
        for batch in self.task.batches(self.first + self.done, self.steps - self.done):
            factor = rate_factor(self.done, self.steps)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group['lr'] = rate * factor
            losses = self._step(batch)
            self.done += 1
            yield losses

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs to continue."""
        return dict(model=self.task.model.state_dict(), optimizer=self.optimizer.state_dict(), done=self.done)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.task.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.done = state['done']

    def _step(self, batch: Any) -> list[float]:
        world, rank = get_world_size(), get_rank()
        owners = [owner % world for owner in OWNERS[0 if world > 3 else 1]]
        states, losses = self.states(self.done), torch.zeros(4, dtype=torch.float64)
        rows: list[list[Tensor | None]] = []
        self.optimizer.zero_grad()
        for i, (state, owner) in enumerate(zip(states, owners, strict=True)):
            if owner == rank:
                losses[i] = self._backward(batch, state)
            if world > 1:
                rows.append([parameter.grad for parameter in self._parameters()])
                self.optimizer.zero_grad()
        self.elastic.select(None)
        if world > 1:
            self._reduce(rows, losses)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses.tolist()

    def _backward(self, batch: Any, state: State | None) -> float:
        self.elastic.select(*((None,) if state is None else (self.space.arch(state), self.space.sources(state))))
        with nullcontext() if state is None else kept_statistics(self.task.model):
            loss = self.task.loss(batch, self.first + self.done)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(
                    f'the loss of {"the largest network" if state is None else self.space.arch(state)} is {value} in '
                    f'training step {self.done + 1} of {self.steps} of the supernet; use a smaller learning rate: '
                    f'--cfg-options optim_wrapper.optimizer.lr={self.rates[0] / 3:.1g}'
                )
            self.optimizer.backward(loss / 4)  # needs the statistics as they are now
        return value

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.task.model.parameters() if parameter.requires_grad]

    def _reduce(self, rows: list[list[Tensor | None]], losses: Tensor) -> None:
        """Sum gradients over the networks, in their order, and take norm statistics from the first process."""
        parameters = self._parameters()
        has_grad = torch.tensor([[grad is not None for grad in row] for row in rows], dtype=torch.float32)
        flat = torch.stack([
            torch.cat([
                torch.zeros_like(parameter).flatten() if grad is None else grad.flatten()
                for parameter, grad in zip(parameters, row, strict=True)
            ])
            for row in rows
        ])  # fmt: skip
        for tensor in (flat, has_grad, losses):
            distributed.all_reduce(tensor)  # a network has one owner: all other addends are zero
        total = flat[0] + flat[1] + flat[2] + flat[3]
        parts = total.split([parameter.numel() for parameter in parameters])
        for parameter, part, has in zip(parameters, parts, has_grad.sum(0) > 0, strict=True):
            parameter.grad = part.view_as(parameter).clone() if has else None
        for norm in self.task.model.modules():
            if isinstance(norm, _BatchNorm):
                for buffer in norm.buffers():
                    distributed.broadcast(buffer, 0)
