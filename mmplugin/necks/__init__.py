"""Pyramids, registered in mmengine's root ``MODELS``."""

from .upsampled_fpn import UpsampledFPN

__all__ = ['UpsampledFPN']
