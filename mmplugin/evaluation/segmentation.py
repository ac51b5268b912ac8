"""mmseg's IoUMetric with boundary IoU and a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from torch import Tensor

from mmplugin.tables import Table, number

BOUNDARY_SHARE = 0.02  # of the image diagonal, as in the paper on boundary IoU (Cheng et al., CVPR 2021)


def confusion(target: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of pixels by (true class, predicted class), a (classes + 1, classes) int64 array.

    The last row counts the pixels whose true label is not the number of a class.
    """
    flat = np.minimum(target, classes).astype(np.int64) * classes + prediction.astype(np.int64)
    return np.bincount(flat, minlength=(classes + 1) * classes).reshape(classes + 1, classes)


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask within ``width`` of its outside; beyond the image border is outside, too."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), width, width, width, width, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    inner = cv2.erode(padded, kernel)[width:-width, width:-width]
    return mask & (inner == 0)


def boundary_overlap(target: np.ndarray, prediction: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """Return, per class, the intersection and the union of both boundaries in pixels, a (classes, 2) int64 array."""
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*target.shape))))
    valid = target != ignore_index
    overlap = np.zeros((classes, 2), dtype=np.int64)
    labels = np.union1d(np.unique(target[valid]), np.unique(prediction[valid]))
    for label in labels[labels < classes]:
        true_band = boundary(target == label, width) & valid
        predicted_band = boundary((prediction == label) & valid, width)
        overlap[label] = (true_band & predicted_band).sum(), (true_band | predicted_band).sum()
    return overlap


class SegmentationMetric(IoUMetric):
    """``IoUMetric`` with mean boundary IoU and a confusion matrix, in constant memory.

    The sums over all images replace the areas that ``IoUMetric`` keeps for every image. With several processes, the
    sampler needs ``round_up=False``; otherwise the images that pad the last batch count twice.

    Args:
        boundary_iou: Measure boundary IoU, which takes some milliseconds per image.
        **options: Arguments of ``IoUMetric``.
    """

    results: list[tuple[np.ndarray, ...]]  # of BaseMetric: one sum after the first batch

    def __init__(self, boundary_iou: bool = True, **options: Any):
        super().__init__(**options)
        self.boundary_iou = boundary_iou
        self.matrix: np.ndarray | None = None  # (true class, predicted class), of the last evaluation
        self.boundaries = np.zeros((0, 2))  # (classes, 2): pixels in both boundaries, pixels in either
        self.areas: tuple[np.ndarray, ...] = ()  # intersection, union, prediction, target, as IoUMetric orders them

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch to the sums."""
        super().process(data_batch, data_samples)
        if self.results:
            self.results = [_sum(self.results)]

    def intersect_and_union(
        self, pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the confusion matrix and the boundary overlaps of an image in place of its areas."""
        # IoUMetric removes the sides of length 1.
        prediction, target = (np.atleast_2d(labels.cpu().numpy()) for labels in (pred_label, label))
        valid = target != ignore_index
        matrix = confusion(target[valid], prediction[valid], num_classes)
        if not self.boundary_iou:
            return matrix, np.zeros((num_classes, 2), dtype=np.int64)
        return matrix, boundary_overlap(target, prediction, num_classes, ignore_index)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics of ``IoUMetric``, and ``mBIoU``."""
        if self.format_only:
            return super().compute_metrics(results)
        matrix, self.boundaries = _sum(results)
        self.matrix = matrix[:-1]
        hits, target, prediction = np.diag(self.matrix), self.matrix.sum(axis=1), matrix.sum(axis=0)
        self.areas = tuple(area.astype(np.float64) for area in (hits, target + prediction - hits, prediction, target))
        metrics = super().compute_metrics([tuple(torch.from_numpy(area) for area in self.areas)])
        if self.boundary_iou:
            metrics['mBIoU'] = np.round(np.nanmean(self.per_class()['BIoU']), 2)
        return {name: float(value) for name, value in metrics.items()}

    def per_class(self) -> dict[str, np.ndarray]:
        """Return IoU, accuracy and boundary IoU of every class in percent; NaN for classes without pixels."""
        hits, union, _, target = self.areas
        with np.errstate(invalid='ignore', divide='ignore'):
            values = {'IoU': 100 * hits / union, 'Acc': 100 * hits / target}
            if self.boundary_iou:
                values['BIoU'] = 100 * self.boundaries[:, 0] / self.boundaries[:, 1]
        return values

    def table(self) -> Table:
        """Return the values of every class."""
        classes, columns = self.dataset_meta['classes'], self.per_class() if self.matrix is not None else {}
        rows = [(name, *(number(column[i], 1) for column in columns.values())) for i, name in enumerate(classes)]
        return Table('Per class, in percent', ('class', *columns), rows if columns else [])


def _sum(parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Add up matrices and boundary overlaps."""
    return tuple(np.sum(column, axis=0) for column in zip(*parts, strict=True))
