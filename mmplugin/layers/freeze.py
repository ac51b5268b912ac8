"""The one helper that freezes: used by the backbones and by FreezeNormHook."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Every norm with running statistics: batch norms of any dimension, SyncBatchNorm among them."""
    return ((name, child) for name, child in module.named_modules() if isinstance(child, _BatchNorm))


def freeze_norms(module: nn.Module, affine: bool = False) -> int:
    """Keeps the statistics of every norm in ``module`` as they are; with ``affine``, scale and shift too.

    Holds until the next ``train()``, which is why whoever wants it to last calls it from there.

    Returns:
        How many norms there are.
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
    """Stops a part altogether: no gradients, statistics as they are, no random dropping."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
