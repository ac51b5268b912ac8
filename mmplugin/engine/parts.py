"""Importing this registers what our configs name besides models: samplers, loops, transforms, metrics."""

from mmplugin import necks
from mmplugin.data import seeded_sampler, transforms
from mmplugin.engine import checkpoints, loops, losses
from mmplugin.evaluation import detection_errors, segmentation
from mmplugin.hooks import draw, label_range, progress, warm_start

__all__ = [
    'checkpoints',
    'detection_errors',
    'draw',
    'label_range',
    'loops',
    'losses',
    'necks',
    'progress',
    'seeded_sampler',
    'segmentation',
    'transforms',
    'warm_start',
]
