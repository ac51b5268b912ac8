"""Segmentation measured by one confusion matrix, in constant memory."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric

BOUNDARY_SHARE = 0.02  # of the image's diagonal, as boundary IoU was proposed


def confusion(truth: np.ndarray, found: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """Pixels by (true class, found class): (classes, classes) int64."""
    counted = truth != ignore
    flat = truth[counted].astype(np.int64) * classes + found[counted].astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that are at most ``width`` from its outside, which begins at the image's border too."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), width, width, width, width, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    inner = cv2.erode(padded, kernel)[width:-width, width:-width]
    return mask & (inner == 0)


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """IoU and accuracy of each class in percent; NaN where there is nothing to measure."""
    hit = np.diag(matrix).astype(np.float64)
    truth, found = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return {'IoU': 100 * hit / (truth + found - hit), 'Acc': 100 * hit / truth}


class SegmentationMetric(BaseMetric):
    """mIoU, mAcc, aAcc and mean boundary IoU in percent; per-class values stay readable afterwards.

    Args:
        ignore_index: Label of pixels that do not count.
        boundary_iou: Measure boundaries too, which costs some milliseconds an image.
        collect_device: Kept for OpenMMLab's sake; sums are reduced where the process group wants them.
        prefix: Put before the names of the results.
    """

    default_prefix = None

    def __init__(
        self,
        ignore_index: int = 255,
        boundary_iou: bool = True,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        self.ignore_index, self.boundary_iou = ignore_index, boundary_iou
        self.matrix: np.ndarray | None = None
        self.boundaries: np.ndarray | None = None  # (classes, 2): pixels in both bands, pixels in either

    @property
    def classes(self) -> Sequence[str]:
        return self.dataset_meta['classes']

    def _reset(self) -> None:
        count = len(self.classes)
        self.matrix = np.zeros((count, count), dtype=np.int64)
        self.boundaries = np.zeros((count, 2), dtype=np.int64)
        self._running = True

    _running = False

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        if not self._running:
            self._reset()
        for sample in data_samples:
            found = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy()
            truth = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            self.matrix += confusion(truth, found, len(self.classes), self.ignore_index)
            if self.boundary_iou:
                self._add_boundaries(truth, found)

    def _add_boundaries(self, truth: np.ndarray, found: np.ndarray) -> None:
        width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
        counted = truth != self.ignore_index
        for label in np.union1d(np.unique(truth[counted]), np.unique(found[counted])):
            true_band = boundary(truth == label, width) & counted
            found_band = boundary((found == label) & counted, width)
            self.boundaries[label] += (true_band & found_band).sum(), (true_band | found_band).sum()

    def evaluate(self, size: int) -> dict[str, float]:
        """Sums over all processes; ``size`` is of no use, as no image counts twice."""
        if not self._running:
            self._reset()
        for name in ('matrix', 'boundaries'):
            total = torch.from_numpy(getattr(self, name))
            all_reduce(total)
            setattr(self, name, total.numpy())
        self._running = False
        results = self.compute_metrics([])
        return {f'{self.prefix}/{key}': value for key, value in results.items()} if self.prefix else results

    def compute_metrics(self, results: list) -> dict[str, float]:
        values = self.table()
        pixels = max(1, self.matrix.sum())
        metrics = {
            'mIoU': np.nanmean(values['IoU']),
            'mAcc': np.nanmean(values['Acc']),
            'aAcc': 100 * np.trace(self.matrix) / pixels,
        }
        if self.boundary_iou:
            metrics['mBIoU'] = np.nanmean(values['BIoU'])
        return {key: round(float(value), 2) for key, value in metrics.items()}

    def table(self) -> dict[str, np.ndarray]:
        """Per class, in percent: IoU, Acc, and BIoU (boundary) if it was measured."""
        values = per_class(self.matrix)
        if self.boundary_iou:
            with np.errstate(invalid='ignore', divide='ignore'):
                values['BIoU'] = 100 * self.boundaries[:, 0] / self.boundaries[:, 1]
        return values
