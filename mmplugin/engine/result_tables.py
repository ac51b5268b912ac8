"""Tables of an evaluation: printed by training and testing, and shown in the report."""

import math
from collections.abc import Sequence

from mmengine.evaluator import Evaluator

from mmplugin.evaluation.detection_errors import CORRECT, EXPLAINED, KINDS, ErrorBreakdown
from mmplugin.evaluation.segmentation import SegmentationMetric
from mmplugin.tables import Table

HEADLINES = {
    'coco/bbox_mAP': 'box AP',
    'coco/bbox_mAP_50': 'box AP50',
    'coco/bbox_mAP_75': 'box AP75',
    'mask/segm_mAP': 'mask AP',
    'mask/segm_mAP_50': 'mask AP50',
    'mask/segm_mAP_75': 'mask AP75',
    'mIoU': 'mIoU %',
    'mAcc': 'mean accuracy %',
    'aAcc': 'pixel accuracy %',
    'mBIoU': 'boundary IoU %',
}


def _number(value: float, digits: int = 3) -> str:
    return 'n/a' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def headline(metrics: dict[str, float]) -> Table:
    present = {key: name for key, name in HEADLINES.items() if key in metrics}
    rows = [(name, _number(metrics[key], 3 if 'AP' in name else 2)) for key, name in present.items()]
    return Table('Result', ('measure', 'value'), rows)


def per_class(metrics: dict[str, float], evaluator: Evaluator, classes: Sequence[str]) -> Table:
    """AP of boxes and masks, or IoU, accuracy and boundary IoU, a row a class."""
    for metric in evaluator.metrics:
        if isinstance(metric, SegmentationMetric):
            values = metric.table()
            rows = [(name, *(_number(column[i], 1) for column in values.values())) for i, name in enumerate(classes)]
            return Table('Per class, in percent', ('class', *values), rows)
    columns = {'box AP': 'coco', 'mask AP': 'mask'}
    columns = {name: prefix for name, prefix in columns.items() if f'{prefix}/{classes[0]}_precision' in metrics}
    rows = [
        (name, *(_number(metrics.get(f'{prefix}/{name}_precision', math.nan)) for prefix in columns.values()))
        for name in classes
    ]
    return Table('Per class', ('class', *columns), rows if columns else [])


def errors(evaluator: Evaluator) -> Table | None:
    """What is wrong with the detections that one would draw."""
    for metric in evaluator.metrics:
        if isinstance(metric, ErrorBreakdown):
            total = max(1, sum(metric.counts.values()))
            rows = [
                (kind, str(metric.counts[kind]), f'{metric.counts[kind] / total:.0%}', EXPLAINED.get(kind, ''))
                for kind in (CORRECT, *KINDS)
            ]
            title = f'Detections with score {metric.score_thr} or higher'
            return Table(title, ('kind', 'count', 'share', 'meaning'), rows, left=['meaning'])
    return None


def result_tables(metrics: dict[str, float], evaluator: Evaluator, classes: Sequence[str]) -> list[Table]:
    found = [headline(metrics), per_class(metrics, evaluator, classes), errors(evaluator)]
    return [table for table in found if table is not None and table.rows]
