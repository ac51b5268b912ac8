"""mmpretrain's Accuracy with a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmplugin.classification.framework import import_mmpretrain
from mmplugin.tables import Table, number

import_mmpretrain('mmpretrain.evaluation')

from mmpretrain.evaluation import Accuracy  # noqa: E402

MOST_CLASSES, MOST_CONFUSIONS = 100, 12  # rows of a table


class ClassificationMetric(Accuracy):
    """``Accuracy`` with a confusion matrix, whose tables show the accuracy of each class and the usual confusions.

    Args:
        **options: Arguments of ``Accuracy``.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.matrix: np.ndarray | None = None  # (true class, predicted class), of the last evaluation

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the accuracies, and the matrix."""
        classes = len(self.dataset_meta['classes'])
        target = np.array([int(result['gt_label']) for result in results])
        predicted = np.array([int(result['pred_score'].argmax()) for result in results])
        flat = np.bincount(target * classes + predicted, minlength=classes * classes)
        self.matrix = flat.reshape(classes, classes)
        return {name: float(value) for name, value in super().compute_metrics(results).items()}

    def tables(self) -> list[Table]:
        """Return the accuracy of each class, worst first, and the most frequent confusions."""
        if self.matrix is None:
            return []
        names: Sequence[str] = self.dataset_meta['classes']
        counts = self.matrix.sum(axis=1)
        with np.errstate(invalid='ignore'):
            shares = 100 * np.diag(self.matrix) / counts
        order = [i for i in np.argsort(np.nan_to_num(shares, nan=101), kind='stable') if counts[i]][:MOST_CLASSES]
        rows = [(names[i], str(counts[i]), number(shares[i], 1)) for i in order]
        worst = f', the {MOST_CLASSES} worst of {len(names)}' if len(names) > MOST_CLASSES else ''
        wrong = self.matrix - np.diag(np.diag(self.matrix))
        largest = np.argsort(-wrong, axis=None, kind='stable')[:MOST_CONFUSIONS]
        pairs = [np.unravel_index(index, wrong.shape) for index in largest]
        confusions = [(names[i], names[j], str(wrong[i, j])) for i, j in pairs if wrong[i, j]]
        return [
            Table(f'Accuracy of each class in percent{worst}', ('class', 'images', 'accuracy'), rows),
            Table('Most frequent confusions', ('class', 'predicted', 'images'), confusions, left=('predicted',)),
        ]
