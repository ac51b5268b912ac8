"""Stochastic depth (Huang et al., 2016)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for a whole sample, with probability ``rate``, while training."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f'rate={self.rate}'


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """A rate for every block of every stage, growing linearly from 0 at the first block to ``rate`` at the last."""
    last = max(sum(depths) - 1, 1)
    numbers = iter(range(sum(depths)))
    return [[rate * next(numbers) / last for _ in range(depth)] for depth in depths]
