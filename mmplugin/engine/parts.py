"""Importing this registers what our configs name besides models: samplers, loops, transforms, metrics."""

from mmplugin import necks
from mmplugin.data import guard
from mmplugin.engine import (
    checkpoints,
    draw,
    loops,
    losses,
    metric_detection,
    metric_segmentation,
    sampling,
    transforms,
    warm_start,
)
from mmplugin.hooks import progress

__all__ = [
    'checkpoints',
    'draw',
    'guard',
    'loops',
    'losses',
    'metric_detection',
    'metric_segmentation',
    'necks',
    'progress',
    'sampling',
    'transforms',
    'warm_start',
]
