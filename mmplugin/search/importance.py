"""How much the loss depends on each channel.

The score of EfficientViT (Liu et al., CVPR 2023, Section 2.3) is the product of gradient and weight, which approximates
by how much the loss changes when the channel is removed (Molchanov et al., CVPR 2019). Here it belongs to a gate: a
factor of 1 on everything that reads a channel. The derivative of the loss by the gate is the sum of ``weight *
gradient`` over the weights that read the channel. No weight reads queries: their gate is where they are produced.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .pools import Pools

Loss = Callable[[Any], Tensor]  # a batch to a scalar
QUERIES = {'v1': '.token_mixer.qkv.', 'v2': '.token_mixer.q.norm.', 'evit': '.mixer.dws.'}


class Importance:
    """Scores of the channels of each pool.

    Args:
        pools: Pools of the network.
        gates: For each pool, derivatives of the loss by the gates: (batches, channels).
        square: Whether the score of a group is the squared sum of its gates, else the sum.
    """

    def __init__(self, pools: Pools, gates: Mapping[str, Tensor], square: bool = True):
        self.pools, self.gates, self.square = pools, dict(gates), square
        self.orders = {pool: values.square().mean(0).argsort(stable=True) for pool, values in self.gates.items()}

    def of_group(self, size: str, before: int, after: int) -> float:
        """Return the score of the channels that leave when a size shrinks from ``before`` to ``after``.

        The least important channels of each pool leave first.
        """
        total = 0.0
        for pool in self.pools.of_size(size):
            count, divisor = self.pools.count[pool], self.pools.sizes[pool][1]
            group = self.orders[pool][count - before // divisor : count - after // divisor]
            gates = self.gates[pool][:, group].sum(1)
            total += float(gates.square().mean() if self.square else gates.mean())
        return total

    def kept(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the channels that stay in each pool, in their order."""
        kept = {}
        for pool, (size, divisor) in self.pools.sizes.items():
            removed = self.pools.count[pool] - sizes[size] // divisor
            if removed:
                kept[pool] = self.orders[pool][removed:].sort()[0]
        return kept


def taylor(
    model: nn.Module, pools: Pools, readers: Mapping[str, str], batches: Iterable[Any], loss: Loss
) -> Importance:
    """Return the importance by Taylor expansion, on batches of training data.

    Args:
        model: The model whose ``backbone`` the pools describe. Its mode is set to evaluation.
        pools: Pools of the backbone.
        readers: Names of the weights outside of the backbone that read its maps, and their input axes.
        batches: Batches, one gate derivative each.
        loss: The loss of a batch.
    """
    model.eval().requires_grad_(True)  # frozen parts, too: their channels may leave
    rows: dict[str, list[Tensor]] = {pool: [] for pool in pools.sizes}
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss(batch).backward()
        gates = _gates(model, pools, readers, lambda weight: weight * weight.grad if weight.grad is not None else None)
        for pool, values in gates.items():
            rows[pool].append(values)
    model.zero_grad(set_to_none=True)
    return Importance(pools, {pool: torch.stack(values) for pool, values in rows.items()})


def magnitude(model: nn.Module, pools: Pools, readers: Mapping[str, str]) -> Importance:
    """Return the importance by the squared weights that read a channel, a baseline."""
    return Importance(
        pools, {pool: gates[None] for pool, gates in _gates(model, pools, readers, torch.square).items()}, square=False
    )


def at_random(pools: Pools, seed: int) -> Importance:
    """Return random scores, a baseline."""
    generator = torch.Generator().manual_seed(seed)
    return Importance(
        pools, {pool: torch.rand(1, count, generator=generator) for pool, count in pools.count.items()}, square=False
    )


@torch.no_grad()
def _gates(
    model: nn.Module, pools: Pools, readers: Mapping[str, str], value: Callable[[Tensor], Tensor | None]
) -> dict[str, Tensor]:
    """Return, for each pool, the sum of ``value`` over the weights that read each of its channels."""
    gates = {pool: torch.zeros(count, dtype=torch.float64) for pool, count in pools.count.items()}

    def add(axis: str, dim: int, weight: Tensor, only: str = '') -> None:
        values = value(weight)
        if values is None:  # not part of the loss
            return
        sums = values.double().flatten(dim + 1).sum(-1) if values.dim() > dim + 1 else values.double()
        sums = sums.sum(tuple(range(dim))) if dim else sums
        for pool, offset in pools.axes[axis]:
            if pool.startswith(only):
                gates[pool] += sums[offset : offset + pools.count[pool]].cpu()

    backbone: Any = model.backbone
    parameters = dict(backbone.named_parameters())
    for key, axis in pools.inputs(parameters):
        add(axis, 1, parameters[key])
    for key, weight in parameters.items():
        if QUERIES[pools.family] in key and not key.endswith('conv.weight'):
            output = pools.axes_of(key, weight.shape)[0]
            assert output is not None
            _add_queries(pools, gates, output, value(weight))
    outside = dict(model.named_parameters())
    for key, axis in readers.items():
        add(axis, 1, outside[key])
    return gates


def _add_queries(pools: Pools, gates: dict[str, Tensor], axis: str, values: Tensor | None) -> None:
    """Add the rows that produce queries. In a joint matrix, they come first in every head."""
    if values is None:
        return
    rows, seen = values.double().flatten(1).sum(1) if values.dim() > 1 else values.double(), set()
    for pool, offset in pools.axes[axis]:
        if pool.startswith('key') and pool not in seen:
            seen.add(pool)
            gates[pool] += rows[offset : offset + pools.count[pool]].cpu()
