"""Kinds of detection errors, after TIDE (Bolya et al., ECCV 2020)."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric

from mmplugin.tables import Table

CORRECT, KINDS = 'correct', ('classification', 'localization', 'both', 'duplicate', 'background', 'missed')
MEANING = {
    'classification': 'right location, wrong class',
    'localization': 'right class, poor location',
    'both': 'wrong class, poor location',
    'duplicate': 'another box on an object that is already detected',
    'background': 'no object at this location',
    'missed': 'an object without any detection near it',
}


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the (n, m) IoUs of (n, 4) and (m, 4) boxes in x1, y1, x2, y2 format."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-9)


def classify_errors(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    true_boxes: np.ndarray,
    true_labels: np.ndarray,
    match_iou: float = 0.5,
    near_iou: float = 0.1,
) -> dict[str, int]:
    """Count the detections and objects of one image by kind.

    Every detection has exactly one kind; the one with the highest score is matched first. An object that no detection
    explains is missed.

    Args:
        boxes: (n, 4), x1, y1, x2, y2.
        labels: (n,).
        scores: (n,).
        true_boxes: (m, 4).
        true_labels: (m,).
        match_iou: From this IoU on, the location is right.
        near_iou: From this IoU on, the location is poor. Below it, the detection is background.
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
        if len(row) and free.max() >= match_iou:
            found[free.argmax()] = True
            counts[CORRECT] += 1
        else:
            wrong.append((same, np.where(true_labels == label, 0.0, row)))
    for same, other in wrong:
        best_same, best_other = (values.max() if len(values) else 0.0 for values in (same, other))
        if best_same >= match_iou:
            kind, target = 'duplicate', None
        elif best_other >= match_iou:
            kind, target = 'classification', other.argmax()
        elif best_same >= near_iou:
            kind, target = 'localization', same.argmax()
        elif best_other >= near_iou:
            kind, target = 'both', None
        else:
            kind, target = 'background', None
        counts[kind] += 1
        if target is not None:
            explained[target] = True
    counts['missed'] = int((~found & ~explained).sum())
    return counts


class ErrorBreakdown(BaseMetric):
    """Number of detections per kind of error, in constant memory.

    Crowd regions are not part of the ground truth. Images without ground truth boxes in their data sample are skipped.

    Args:
        score_thr: Detections with a lower score are ignored. 0.3 is the usual threshold for drawing.
        collect_device: Unused; counts are reduced on the device of the process group.
        prefix: Prefix of the names of the results.
    """

    default_prefix = 'errors'

    def __init__(self, score_thr: float = 0.3, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.score_thr = score_thr
        self.counts = dict.fromkeys((CORRECT, *KINDS), 0)
        self._running = False

    def _start(self) -> None:
        if not self._running:
            self.counts = dict.fromkeys(self.counts, 0)
            self._running = True

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch; the first batch of an evaluation starts from zero."""
        self._start()
        for sample in data_samples:
            detections, ground_truth = sample['pred_instances'], sample.get('gt_instances', {})
            if 'bboxes' not in ground_truth:
                continue
            scores = _numpy(detections['scores'])
            above = scores >= self.score_thr
            counts = classify_errors(
                _numpy(detections['bboxes'])[above],
                _numpy(detections['labels'])[above],
                scores[above],
                _numpy(ground_truth['bboxes']),
                _numpy(ground_truth['labels']),
            )
            self.counts = {kind: count + counts[kind] for kind, count in self.counts.items()}

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum the counts of all processes."""
        self._start()  # a process without images adds nothing
        total = torch.tensor(list(self.counts.values()))
        all_reduce(total)
        self.counts = dict(zip(self.counts, total.tolist(), strict=True))
        self._running = False
        return {f'{self.prefix}/{key}': value for key, value in self.compute_metrics([]).items()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the counts."""
        return dict(self.counts)

    def table(self) -> Table:
        """Return the count, share and meaning of every kind."""
        total = max(1, sum(self.counts.values()))
        rows = [
            (kind, str(self.counts[kind]), f'{self.counts[kind] / total:.0%}', MEANING.get(kind, ''))
            for kind in (CORRECT, *KINDS)
        ]
        title = f'Detections with score {self.score_thr} or higher'
        return Table(title, ('kind', 'count', 'share', 'meaning'), rows, left=['meaning'])


def _numpy(values: torch.Tensor | np.ndarray) -> np.ndarray:
    if hasattr(values, 'tensor'):  # mmdet's box structures
        values = values.tensor
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
