"""Masks of objects from the grids that a file returns. Needs numpy and Pillow only."""

from mmplugin.deploy.predictor import paste_masks

__all__ = ['paste_masks']
