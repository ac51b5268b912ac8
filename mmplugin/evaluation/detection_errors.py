"""What goes wrong with detections, counted by kind."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric

CORRECT, KINDS = 'correct', ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
EXPLAINED = {
    'classification': 'right place, wrong class',
    'localisation': 'right class, poor place',
    'both': 'wrong class, poor place',
    'duplicate': 'a second box on a thing already found',
    'background': 'nothing is there',
    'missed': 'a thing that no box comes near',
}


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) of (n, 4) and (m, 4) boxes as x1, y1, x2, y2."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-9)


def break_down(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    true_boxes: np.ndarray,
    true_labels: np.ndarray,
    good: float = 0.5,
    near: float = 0.1,
) -> dict[str, int]:
    """Every detection gets one kind, best score first; every thing that no box explains is missed.

    Args:
        boxes: (n, 4), of one image, as x1, y1, x2, y2.
        labels: (n,).
        scores: (n,).
        true_boxes: (m, 4).
        true_labels: (m,).
        good: From this IoU on the place is right.
        near: From this IoU on it is poor; below, nothing is there.
    """
    counts = dict.fromkeys((CORRECT, *KINDS), 0)
    order = np.argsort(-scores, kind='stable')
    overlap = box_iou(boxes[order], true_boxes)
    found = np.zeros(len(true_boxes), dtype=bool)
    explained = np.zeros(len(true_boxes), dtype=bool)
    wrong = []
    for row, label in zip(overlap, labels[order], strict=True):
        same = np.where(true_labels == label, row, 0.0)
        free = np.where(found, 0.0, same)
        if len(row) and free.max() >= good:
            found[free.argmax()] = True
            counts[CORRECT] += 1
        else:
            wrong.append((same, np.where(true_labels == label, 0.0, row)))
    for same, other in wrong:
        best_same, best_other = (values.max() if len(values) else 0.0 for values in (same, other))
        if best_same >= good:
            kind, target = 'duplicate', None
        elif best_other >= good:
            kind, target = 'classification', other.argmax()
        elif best_same >= near:
            kind, target = 'localisation', same.argmax()
        elif best_other >= near:
            kind, target = 'both', None
        else:
            kind, target = 'background', None
        counts[kind] += 1
        if target is not None:
            explained[target] = True
    counts['missed'] = int((~found & ~explained).sum())
    return counts


class ErrorBreakdown(BaseMetric):
    """Counts detections above a score by what is wrong with them, in constant memory.

    Crowds are left out, and detections that overlap them are not told apart from others.

    Args:
        score_thr: Weaker detections do not count; 0.3 is about where people draw boxes.
        collect_device: Kept for OpenMMLab's sake.
        prefix: Put before the names of the results.
    """

    default_prefix = 'errors'

    def __init__(self, score_thr: float = 0.3, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.score_thr = score_thr
        self.counts = dict.fromkeys((CORRECT, *KINDS), 0)
        self._running = False

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        if not self._running:
            self.counts = dict.fromkeys(self.counts, 0)
            self._running = True
        for sample in data_samples:
            found, truth = sample['pred_instances'], sample['gt_instances']
            scores = _numpy(found['scores'])
            strong = scores >= self.score_thr
            counts = break_down(
                _numpy(found['bboxes'])[strong],
                _numpy(found['labels'])[strong],
                scores[strong],
                _numpy(truth['bboxes']),
                _numpy(truth['labels']),
            )
            self.counts = {kind: count + counts[kind] for kind, count in self.counts.items()}

    def evaluate(self, size: int) -> dict[str, float]:
        total = torch.tensor(list(self.counts.values()))
        all_reduce(total)
        self.counts = dict(zip(self.counts, total.tolist(), strict=True))
        self._running = False
        return {f'{self.prefix}/{key}': value for key, value in self.compute_metrics([]).items()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(self.counts)


def _numpy(values: torch.Tensor | np.ndarray) -> np.ndarray:
    if hasattr(values, 'tensor'):  # mmdet's box structures
        values = values.tensor
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
