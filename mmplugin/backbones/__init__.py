"""Thirteen backbones of three families, registered in mmengine's root ``MODELS``."""

from .base import DenseBackbone
from .efficientformer import EfficientFormer
from .efficientformer_v2 import EfficientFormerV2
from .efficientvit_msra import EfficientViTMSRA

FAMILIES: dict[str, type[DenseBackbone]] = {'v1': EfficientFormer, 'v2': EfficientFormerV2, 'evit': EfficientViTMSRA}

__all__ = ['FAMILIES', 'DenseBackbone', 'EfficientFormer', 'EfficientFormerV2', 'EfficientViTMSRA']
