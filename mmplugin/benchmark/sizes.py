"""Count parameters and multiply-adds."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmplugin.backbones import FAMILIES, DenseBackbone
from mmplugin.convert.arch_file import read_arch

ARCHS: dict[str, tuple[Any, str]] = {
    f'{family}_{arch}': (cls, arch) for family, cls in FAMILIES.items() for arch in cls.ARCHS
}


def is_arch(name: str) -> bool:
    """Return whether a name is one of ``ARCHS``, or an arch in a JSON file."""
    return name in ARCHS or name.endswith('.json')


def class_and_arch(name: str) -> tuple[Any, str | dict[str, Any]]:
    """Return the class and the arch of a backbone.

    Args:
        name: One of ``ARCHS``, or a JSON file such as the ``arch.json`` of a search.
    """
    if name in ARCHS:
        return ARCHS[name]
    family, arch = read_arch(name)
    return FAMILIES[family], arch


def on_meta_device(name: str) -> DenseBackbone:
    """Build a backbone without memory for its weights."""
    cls, arch = class_and_arch(name)
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


def deployed_parameters(model: nn.Module, with_classifier: bool = False) -> int:
    """Return the number of parameters as deployed: norms and layer scales of the backbone folded into other layers.

    Args:
        model: A backbone, or a detector or segmentor with one. It is not changed.
        with_classifier: Whether to add the published ImageNet head of a backbone, its norm folded, too.
    """
    backbone: Any = getattr(model, 'backbone', model)
    own = parameters(backbone)
    deployed = parameters(deepcopy(backbone).fuse()) if hasattr(backbone, 'fuse') else own
    classifier = head_parameters(backbone) - 2 * backbone.out_channels[-1] if with_classifier else 0
    return parameters(model) - own + deployed + classifier


def multiply_adds(model: nn.Module, call: Callable[[], object]) -> int:
    """Return the multiply-adds of the convolutions and matrix products that a call of a model runs."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # FlopCounterMode fails where a module takes a trainable parameter as an argument
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
    return counter.get_total_flops() // 2


def macs(name: str, sizes: Sequence[Sequence[int]]) -> list[int]:
    """Return the multiply-adds of convolutions and matrix products for one image of each size (height, width)."""
    model = on_meta_device(name).eval().fuse()  # norms have no multiply-adds of this kind; without them it runs faster
    images = [torch.empty(1, model.in_channels, *size, device='meta') for size in sizes]
    return [multiply_adds(model, partial(model, x)) for x in images]
