"""Tables of an evaluation, printed by training and testing and shown in the report."""

from itertools import chain

import numpy as np
from mmengine.evaluator import Evaluator

from mmplugin.tables import Table, number

HEADLINES = {  # name of a result without its prefix: text
    'bbox_mAP': 'box AP',
    'bbox_mAP_50': 'box AP50',
    'bbox_mAP_75': 'box AP75',
    'segm_mAP': 'mask AP',
    'segm_mAP_50': 'mask AP50',
    'segm_mAP_75': 'mask AP75',
    'mIoU': 'mIoU %',
    'mAcc': 'mean accuracy %',
    'aAcc': 'pixel accuracy %',
    'mBIoU': 'boundary IoU %',
    'top1': 'top-1 accuracy %',
    'top5': 'top-5 accuracy %',
}


def headline(metrics: dict[str, float]) -> Table:
    """Return the headline numbers, whatever the prefix of their names."""
    values = {name.rpartition('/')[2]: value for name, value in metrics.items()}
    rows = [
        (text, number(values[name], 3 if 'AP' in name else 2)) for name, text in HEADLINES.items() if name in values
    ]
    return Table('Result', ('metric', 'value'), rows)


def details(evaluator: Evaluator) -> list[Table]:
    """Return the tables of all metrics that have one, such as the values of every class."""
    several = [metric.tables() for metric in evaluator.metrics if hasattr(metric, 'tables')]
    single = [metric.table() for metric in evaluator.metrics if hasattr(metric, 'table')]
    return [table for table in [*single, *chain(*several)] if table.rows]


def confusion_matrix(evaluator: Evaluator) -> np.ndarray | None:
    """Return the confusion matrix of an evaluation, if one of its metrics has one."""
    matrices = [metric.matrix for metric in evaluator.metrics if getattr(metric, 'matrix', None) is not None]
    return matrices[0] if matrices else None
