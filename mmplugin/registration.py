"""Registers every hook, sampler, transform, metric, loop and model part in mmengine's root registries.

The backbones register themselves. Everything else is registered as a function that imports its module when the part is
built, because these modules import mmcv or mmengine's runner, which takes seconds that a plain backbone does not need.
One registration in the root serves mmdet and mmseg.
"""

from importlib import import_module
from typing import Any

from mmengine import registry
from mmengine.fileio import register_backend

from mmplugin.files import AtomicBackend

# registry: {name: module}
PARTS = {
    registry.MODELS: {
        'BalancedCrossEntropy': 'mmplugin.engine.losses',
        'UpsampledFPN': 'mmplugin.necks',
    },
    registry.HOOKS: {
        'DrawHook': 'mmplugin.hooks.draw',
        'FreezeNormHook': 'mmplugin.hooks.freeze_norm',
        'IterationSeedHook': 'mmplugin.hooks.iteration_seed',
        'LabelRangeHook': 'mmplugin.hooks.label_range',
        'ProgressHook': 'mmplugin.hooks.progress',
        'WarmStartHook': 'mmplugin.hooks.warm_start',
    },
    registry.DATA_SAMPLERS: {'SeededSampler': 'mmplugin.data.seeded_sampler'},
    registry.TRANSFORMS: {
        'AlignResize': 'mmplugin.data.transforms',
        'SeedSample': 'mmplugin.data.transforms',
    },
    registry.METRICS: {
        'ErrorBreakdown': 'mmplugin.evaluation.detection_errors',
        'SegmentationMetric': 'mmplugin.evaluation.segmentation',
    },
    registry.LOOPS: {'ResumableIterBasedTrainLoop': 'mmplugin.engine.loops'},
}


def register_parts() -> None:
    """Registers all parts; a second call changes nothing."""
    for target, modules in PARTS.items():
        for name, module in modules.items():
            _register(target, name, module)
    register_backend('atomic', AtomicBackend, force=True)


def _register(target: registry.Registry, name: str, module: str) -> None:
    def build(**settings: Any) -> Any:
        return getattr(import_module(module), name)(**settings)

    target.register_module(name=name, module=build, force=True)
