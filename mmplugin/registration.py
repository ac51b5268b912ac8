"""Register all hooks, samplers, transforms, metrics, loops and model parts in mmengine's root registries.

Backbones register themselves. All other parts are registered as functions that import their module when the part is
built: these modules import mmcv or mmengine's runner, which takes seconds that a plain backbone does not need. One
registration in the root serves both mmdet and mmseg.
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
        'PretrainingClassifier': 'mmplugin.classification.model',
        'UpsampledFPN': 'mmplugin.necks',
    },
    registry.HOOKS: {
        'AdaptiveClipHook': 'mmplugin.classification.hooks',
        'DrawHook': 'mmplugin.hooks.draw',
        'FiniteLossHook': 'mmplugin.hooks.finite_loss',
        'FreezeNormHook': 'mmplugin.hooks.freeze_norm',
        'IterationSeedHook': 'mmplugin.hooks.iteration_seed',
        'LabelRangeHook': 'mmplugin.hooks.label_range',
        'LayerScaleHook': 'mmplugin.hooks.layer_scale',
        'ProgressHook': 'mmplugin.hooks.progress',
        'StopSignalHook': 'mmplugin.hooks.stop_signal',
        'WarmStartHook': 'mmplugin.hooks.warm_start',
        'WeightAverageHook': 'mmplugin.classification.hooks',
    },
    registry.DATA_SAMPLERS: {'SeededSampler': 'mmplugin.data.seeded_sampler'},
    registry.TRANSFORMS: {'SeedSample': 'mmplugin.data.transforms'},
    registry.METRICS: {
        'ClassificationMetric': 'mmplugin.classification.metric',
        'DetectionMetric': 'mmplugin.evaluation.detection',
        'ErrorBreakdown': 'mmplugin.evaluation.detection_errors',
        'FasterDetectionMetric': 'mmplugin.evaluation.detection',
        'SegmentationMetric': 'mmplugin.evaluation.segmentation',
    },
    registry.OPTIM_WRAPPERS: {'AutocastOptimWrapper': 'mmplugin.engine.amp'},
    registry.LOOPS: {
        'ResumableEpochBasedTrainLoop': 'mmplugin.engine.loops',
        'ResumableIterBasedTrainLoop': 'mmplugin.engine.loops',
    },
}


def register_parts() -> None:
    """Register all parts; a second call changes nothing."""
    for target, modules in PARTS.items():
        for name, module in modules.items():
            _register(target, name, module)
    register_backend('atomic', AtomicBackend, force=True)


def _register(target: registry.Registry, name: str, module: str) -> None:
    def build(**settings: Any) -> Any:
        return getattr(import_module(module), name)(**settings)

    target.register_module(name=name, module=build, force=True)
