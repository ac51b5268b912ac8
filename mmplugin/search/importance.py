"""How much the loss depends on each channel.

The score of EfficientViT (Liu et al., CVPR 2023, Section 2.3) is the product of gradient and weight, which approximates
by how much the loss changes when the channel is removed (Molchanov et al., CVPR 2019). Here it belongs to a gate: a
factor of 1 on everything that reads a channel. The derivative of the loss by the gate is the sum of ``weight *
gradient`` over the weights that read the channel. No weight reads queries: their gate is where they are produced.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .pools import Pools

Loss = Callable[[Any], Tensor]  # a batch to a scalar
# What scales the branches of a block: layer scales, or the norms at their ends.
BRANCHES = {
    'v1': re.compile(r'layer_scale_[12]$'),
    'v2': re.compile(r'layer_scale_[12]$'),
    'evit': re.compile(r'(dw[01]|ffn[01]\.pw2|mixer\.proj)\.norm\.'),
}
QUERIES = {'v1': '.token_mixer.qkv.', 'v2': '.token_mixer.q.norm.', 'evit': '.mixer.dws.'}


class Importance:
    """Scores of the channels of each pool.

    Args:
        pools: Pools of the network.
        gates: For each pool, derivatives of the loss by the gates: (batches, channels).
        square: Whether the score of a group is the squared sum of its gates, else the sum.
        blocks: For each block, as ``block.STAGE.BLOCK``, derivatives by a gate on what it adds: (batches,).
    """

    def __init__(
        self,
        pools: Pools,
        gates: Mapping[str, Tensor],
        square: bool = True,
        blocks: Mapping[str, Tensor] | None = None,
    ):
        self.pools, self.gates, self.square, self.blocks = pools, dict(gates), square, dict(blocks or {})
        self.orders = {pool: values.square().mean(0).argsort(stable=True) for pool, values in self.gates.items()}

    def of_group(self, size: str, before: int, after: int) -> float:
        """Return the score of the channels that leave when a size shrinks from ``before`` to ``after``.

        The least important channels of each pool leave first.
        """
        if size in self.blocks:
            return float(self.blocks[size].square().mean() if self.square else self.blocks[size].mean())
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
    blocks: dict[str, list[Tensor]] = {}
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss(batch).backward()
        for pool, values in _gates(model, pools, readers, _taylor_value).items():
            rows[pool].append(values)
        for block, value in _block_gates(model, pools.family, _taylor_value).items():
            blocks.setdefault(block, []).append(value)
    model.zero_grad(set_to_none=True)
    stacked = ({name: torch.stack(values) for name, values in found.items()} for found in (rows, blocks))
    gates, of_blocks = stacked
    return Importance(pools, gates, blocks=of_blocks)


def _taylor_value(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else weight * weight.grad


@torch.no_grad()
def _block_gates(model: nn.Module, family: str, value: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor]:
    """Return, for each block, the sum of ``value`` over what scales its branches."""
    backbone: Any = model.backbone
    found: dict[str, Tensor] = {}
    for i, stage in enumerate(backbone.stages):
        for j, block in enumerate(stage.blocks):
            values = [value(p) for name, p in block.named_parameters() if BRANCHES[family].match(name)]
            total = sum((v.double().sum().cpu() for v in values if v is not None), torch.zeros((), dtype=torch.float64))
            found[f'block.{i}.{j}'] = total
    return found


def magnitude(model: nn.Module, pools: Pools, readers: Mapping[str, str]) -> Importance:
    """Return the importance by the squared weights that read a channel, a baseline."""
    gates = {pool: values[None] for pool, values in _gates(model, pools, readers, torch.square).items()}
    blocks = {block: value[None] for block, value in _block_gates(model, pools.family, torch.square).items()}
    return Importance(pools, gates, square=False, blocks=blocks)


def at_random(pools: Pools, seed: int) -> Importance:
    """Return random scores, a baseline."""
    generator = torch.Generator().manual_seed(seed)
    gates = {pool: torch.rand(1, count, generator=generator) for pool, count in pools.count.items()}
    depths = enumerate(pools.arch['depths'])
    blocks = {f'block.{i}.{j}': torch.rand(1, generator=generator) for i, depth in depths for j in range(depth)}
    return Importance(pools, gates, square=False, blocks=blocks)


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
