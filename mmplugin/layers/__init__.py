"""What more than one family of backbones uses."""

from .activation_checkpoint import checkpoint
from .attention import attend, compiled_for_inference
from .attention_bias import BIASES, OffsetBias, UpstreamBias, remembered, resize_matrix, unfolded
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
    'checkpoint',
    'compiled_for_inference',
    'drop_path_rates',
    'freeze',
    'freeze_norms',
    'norms_of',
    'remembered',
    'resize_matrix',
    'unfolded',
]
