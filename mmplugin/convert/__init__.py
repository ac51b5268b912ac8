"""Strict conversion of published weights to mmplugin's format, and back."""

from .conversion import Result, convert
from .pretrained import load_pretrained

__all__ = ['Result', 'convert', 'load_pretrained']
