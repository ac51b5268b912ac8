"""The operators of ``mmcv.ops`` that detection and segmentation use, in plain PyTorch: nothing to compile.

``import mmplugin`` installs them in place of ``mmcv._ext`` if mmcv has no compiled operators; models keep using
``mmcv.ops``. The functions of this module are the same operators without mmcv.
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
    # Imported on first use, so that ``import mmplugin`` stays fast.
    if name not in _FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.functions'), name)
