"""mmdet's COCO metrics with per-class AP of boxes and of masks."""

import math
from typing import Any

from mmdet.evaluation import metrics as coco

from mmplugin.tables import Table, number

ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
COLUMNS = {'bbox': 'box AP', 'segm': 'mask AP'}


class DetectionMetric(coco.CocoMetric):
    """``CocoMetric`` with per-class AP of boxes and of masks. Takes the arguments of ``CocoMetric``.

    mmdet names the AP of a class ``cat_precision``, whether it is of boxes or of masks, so that the latter replaces the
    former. Here they are ``bbox_cat_precision`` and ``segm_cat_precision``. With ``classwise=True`` the results also
    have mmdet's own names.
    """

    metrics: list[str]  # of CocoMetric

    def __init__(self, *args: Any, classwise: bool = False, **kwargs: Any):
        super().__init__(*args, classwise=True, **kwargs)
        self.keep_names = classwise
        self.per_class: dict[str, dict[str, float]] = {}  # metric: {class: AP}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute each metric alone, and name its per-class values after it.

        Without any detection, AP is 0; mmdet returns no results then.
        """
        metrics, found, per_class = self.metrics, {}, {}
        self.per_class = {}
        try:
            for metric in metrics:
                self.metrics = [metric]
                values = super().compute_metrics(results)
                if not values and not self.format_only and metric in COLUMNS:
                    values = {f'{metric}_{item}': 0.0 for item in self.metric_items or ITEMS}
                for name, value in values.items():
                    label = name.removesuffix('_precision')
                    if label != name:
                        self.per_class.setdefault(metric, {})[label] = float(value)
                        per_class[f'{metric}_{name}'] = float(value)
                    if label == name or self.keep_names:
                        found[name] = value
        finally:
            self.metrics = metrics
        return found | per_class  # save_best='auto' takes the first result

    def table(self) -> Table:
        """Return the AP of every class."""
        columns = [metric for metric in COLUMNS if metric in self.per_class]
        rows = [
            (name, *(number(self.per_class[metric].get(name, math.nan)) for metric in columns))
            for name in (self.dataset_meta['classes'] if columns else ())
        ]
        return Table('Per class', ('class', *(COLUMNS[metric] for metric in columns)), rows)


if hasattr(coco, 'FasterCocoMetric'):  # not in stock mmdet

    class FasterDetectionMetric(DetectionMetric, coco.FasterCocoMetric):
        """``FasterCocoMetric`` with per-class AP of boxes and of masks."""
