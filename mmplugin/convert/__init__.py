"""Published weights to the names of this package, strictly, and back again."""

from .conversion import Result, convert
from .pretrained import load_pretrained

__all__ = ['Result', 'convert', 'load_pretrained']
