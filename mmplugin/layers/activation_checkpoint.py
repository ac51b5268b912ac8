"""Activation checkpointing that counts each batch once in the statistics of batch norms."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from .freeze import norms_of


@contextmanager
def _running_statistics_unchanged(module: nn.Module) -> Iterator[None]:
    """Let forward passes inside use batch statistics without updating the running ones."""
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
    """Return ``module(x)``, saving only ``x`` for backward, where ``module`` runs again."""
    return torch_checkpoint(
        module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_statistics_unchanged(module))
    )
