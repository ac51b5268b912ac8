"""Count parameters and multiply-adds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmplugin.backbones import FAMILIES, DenseBackbone

ARCHS: dict[str, tuple[Any, str]] = {
    f'{family}_{arch}': (cls, arch) for family, cls in FAMILIES.items() for arch in cls.ARCHS
}


def on_meta_device(name: str) -> DenseBackbone:
    """Build one of ``ARCHS`` without memory for its weights."""
    cls, arch = ARCHS[name]
    with torch.device('meta'):
        return cls(arch)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def head_parameters(model: DenseBackbone) -> int:
    """Return the parameters of the published ImageNet head: a norm and one linear layer, or two for distillation."""
    channels, classes = model.out_channels[-1], 1000
    linears = 1 if type(model) is FAMILIES['evit'] else 2
    return 2 * channels + linears * (channels + 1) * classes


def macs(name: str, sizes: Sequence[Sequence[int]]) -> list[int]:
    """Return the multiply-adds of convolutions and matrix products for one image of each size (height, width)."""
    model = on_meta_device(name).eval().fuse()  # norms have no multiply-adds of this kind; without them it runs faster
    counts = []
    for size in sizes:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, model.in_channels, *size, device='meta'))
        counts.append(counter.get_total_flops() // 2)
    return counts
