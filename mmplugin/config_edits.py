"""Questions about a config, and small edits of it, for training, testing, data checks and the benchmark."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config

from mmplugin import stack
from mmplugin.errors import UserError

DETAILED_METRICS = {
    'CocoMetric': 'DetectionMetric',
    'FasterCocoMetric': 'FasterDetectionMetric',
    'IoUMetric': 'SegmentationMetric',
    'Accuracy': 'ClassificationMetric',
}


def is_segmentation(cfg: Config) -> bool:
    """Return whether a config is for mmseg rather than for mmdet."""
    return cfg.get('default_scope') == 'mmseg' or 'decode_head' in (cfg.get('model') or {})


def is_classification(cfg: Config) -> bool:
    """Return whether a config is for mmpretrain."""
    return cfg.get('default_scope') == 'mmpretrain'


def scope_of(cfg: Config) -> str:
    """Return the package whose registries a config uses."""
    if is_classification(cfg):
        return 'mmpretrain'
    return 'mmseg' if is_segmentation(cfg) else 'mmdet'


def import_scope(cfg: Config, module: str) -> ModuleType:
    """Import a module of the package that a config is for, such as ``datasets``."""
    scope = scope_of(cfg)
    if scope == 'mmpretrain':
        from mmplugin.classification.framework import import_mmpretrain

        return import_mmpretrain(f'{scope}.{module}')
    return stack.import_quietly(f'{scope}.{module}')


def refuse_classification(cfg: Config, command: str) -> None:
    """Raise a ``UserError`` for a classification config where only detectors and segmentors make sense."""
    if is_classification(cfg):
        raise UserError(
            f'{command} is for detectors and segmentors; convert the checkpoint and use it as a backbone, or print its '
            'predictions: mmplugin convert CHECKPOINT backbone.pth --ema --verify FOLDER'
        )


def dicts(node: Any) -> Iterator[dict]:
    """Yield all dicts inside a part of a config, outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from dicts(value)


def set_classes_(cfg: Config, names: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Set the classes of all datasets, and the number of classes of all heads."""
    metainfo = dict(classes=tuple(names), palette=[tuple(color) for color in palette])
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(loader):
            cfg[loader].dataset.metainfo = metainfo
    for node in dicts(cfg.model):
        if 'num_classes' in node:
            node['num_classes'] = len(names)


def evaluator_list(evaluator: dict | Sequence[dict] | None) -> list[dict]:
    """Return the metrics of ``val_evaluator`` or ``test_evaluator``, which is one dict or a list of dicts."""
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator or [])


def set_annotations_(cfg: Config, path: Path) -> None:
    """Set the COCO file that all evaluators compare with."""
    for evaluator in [*evaluator_list(cfg.get('val_evaluator')), *evaluator_list(cfg.get('test_evaluator'))]:
        if 'ann_file' in evaluator:
            evaluator['ann_file'] = str(path)


def detailed_evaluators(evaluator: dict | Sequence[dict]) -> list[dict]:
    """Replace the metrics of mmdet and mmseg by subclasses that also measure what the report shows.

    The results keep their names and values. Per-class AP of boxes and of masks, kinds of detection errors, boundary
    IoU and a confusion matrix are added. Other metrics stay as they are.
    """
    detailed = []
    for metric in evaluator_list(evaluator):
        kind = metric.get('type')
        name = kind.rpartition('.')[2] if isinstance(kind, str) else ''  # without the scope of mmdet.CocoMetric
        detailed.append({**metric, 'type': DETAILED_METRICS.get(name, kind)})
        if name in ('CocoMetric', 'FasterCocoMetric') and not metric.get('format_only'):
            detailed.append(dict(type='ErrorBreakdown'))
    return detailed


def replace_sync_norms_(cfg: Config) -> None:
    """Replace SyncBN, which only runs on GPUs, by BN."""
    for node in dicts(cfg.model):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
