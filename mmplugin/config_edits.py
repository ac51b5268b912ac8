"""Questions about a config, and small edits of it, for training, testing, data checks and the benchmark."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

DETAILED_METRICS = {
    'CocoMetric': 'DetectionMetric',
    'FasterCocoMetric': 'FasterDetectionMetric',
    'IoUMetric': 'SegmentationMetric',
}


def is_segmentation(cfg: Config) -> bool:
    """Return whether a config is for mmseg rather than for mmdet."""
    return cfg.get('default_scope') == 'mmseg' or 'decode_head' in (cfg.get('model') or {})


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
