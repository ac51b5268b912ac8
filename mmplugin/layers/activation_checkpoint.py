"""Activation checkpointing that leaves batch norm statistics right."""

from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from .freeze import norms_of


@contextmanager
def _statistics_kept(module: nn.Module):
    """Inside, forward passes leave the running statistics of the norms that train alone."""
    norms = [norm for _, norm in norms_of(module) if norm.training]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def checkpoint(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` that keeps only ``x`` for backward. Recomputing does not count as a second batch for its norms."""
    return torch_checkpoint(
        module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module))
    )
