"""The operators of `mmcv.ops` that detection and segmentation call, in plain PyTorch: nothing to compile.

`import mmplugin` installs them as a stand-in for `mmcv._ext` where mmcv brings no compiled one; models keep using
`mmcv.ops`. The functions here are the same operators without mmcv.
"""

import importlib

from .extension import backend, install

_FUNCTIONS = (
    'batched_nms',
    'deform_conv2d',
    'modulated_deform_conv2d',
    'nms',
    'nms_match',
    'roi_align',
    'roi_pool',
    'sigmoid_focal_loss',
    'soft_nms',
    'softmax_focal_loss',
)
__all__ = ['backend', 'install', *_FUNCTIONS]


def __getattr__(name: str):
    # Read on first use: the operators cost nothing where they are not called.
    if name not in _FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.functions'), name)
