"""Layers that more than one family of backbones uses."""

from .activation_checkpoint import checkpoint
from .activations import gelu, gelu_
from .attention import attend, compiled_for_inference
from .attention_bias import (
    BIASES,
    OffsetBias,
    UpstreamBias,
    bias_windows,
    cached_constant,
    ceil_div,
    is_symbolic,
    resize_matrix,
)
from .conv_norm import ConvNorm
from .drop_path import DropPath, drop_path_rates
from .freeze import freeze, freeze_norms, norms_of

__all__ = [
    'BIASES',
    'ConvNorm',
    'DropPath',
    'OffsetBias',
    'UpstreamBias',
    'attend',
    'bias_windows',
    'cached_constant',
    'ceil_div',
    'checkpoint',
    'compiled_for_inference',
    'drop_path_rates',
    'freeze',
    'freeze_norms',
    'gelu',
    'gelu_',
    'is_symbolic',
    'norms_of',
    'resize_matrix',
]
