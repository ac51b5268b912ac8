"""Backbones with random weights like pretrained ones: no branch is closed, no norm is the identity."""

import copy
from functools import cache

import torch
from mmengine.registry import MODELS

import mmplugin  # noqa: F401  registers the backbones

SMALLEST = [('EfficientFormer', 'l1'), ('EfficientFormerV2', 's0'), ('EfficientViTMSRA', 'm0')]

FEW_BLOCKS = {  # every kind of block once
    'EfficientFormer': dict(widths=(64,) * 4, depths=(1, 1, 1, 2), attention_blocks=1),
    'EfficientFormerV2': dict(widths=(64,) * 4, depths=(1, 1, 1, 1), attention_blocks=1, ratios=((4,),) * 4),
    'EfficientViTMSRA': dict(widths=(256,) * 3, depths=(1, 1, 1), heads=(2, 2, 2), kernels=(3, 3)),
}


def build(name: str, arch: str | dict, **settings) -> torch.nn.Module:
    """Build a backbone, the same one every time, whose biases, scales and norms all change the result."""
    if (name, arch) in SMALLEST and not settings:
        model = copy.deepcopy(_build_once(name, arch))  # ten times as fast as drawing the weights again
    else:
        model = _build(name, arch, **settings)
    torch.manual_seed(0)
    return model


@cache
def _build_once(name: str, arch: str) -> torch.nn.Module:
    return _build(name, arch)


def _build(name: str, arch: str | dict, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(dict(type=name, arch=arch, **settings))
    for key, value in model.state_dict().items():
        if 'layer_scale' in key or 'attention_biases' in key or key.endswith('running_mean'):
            value.normal_(0.1, 0.1)
        elif key.endswith(('norm.weight', 'running_var')):
            value.uniform_(0.5, 1.0)
    return model
