"""The one place that freezes: used by the backbones and by ``FreezeNormHook``."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Iterate over the names and norms with running statistics: batch norms of any dimension and SyncBatchNorm."""
    return ((name, child) for name, child in module.named_modules() if isinstance(child, _BatchNorm))


def freeze_norms(module: nn.Module, affine: bool = False) -> int:
    """Freeze the statistics of every norm in ``module``; with ``affine``, scale and shift too.

    The next ``train()`` ends this. To keep norms frozen, call this function again after every ``train()``.

    Returns:
        The number of norms.
    """
    count = 0
    for _, norm in norms_of(module):
        norm.eval()
        if affine:
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(False)
        count += 1
    return count


def freeze(module: nn.Module) -> None:
    """Freeze a whole part: no gradients, fixed norm statistics, no drop path."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
