"""Stochastic depth (Huang et al., 2016)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Set a residual branch to zero for whole samples, with probability ``rate``, in training only."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of ``x`` (B, ...) and scale the others up, so that the mean stays."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        """Return the rate."""
        return f'rate={self.rate}'


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return a rate per block of every stage, growing linearly from 0 in the first block to ``rate`` in the last."""
    last = max(sum(depths) - 1, 1)
    numbers = iter(range(sum(depths)))
    return [[rate * next(numbers) / last for _ in range(depth)] for depth in depths]
