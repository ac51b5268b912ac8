"""Evaluators against brute force."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.strategies import SEEDS

import mmplugin  # noqa: F401  stock mmseg cannot be imported without its operators
from mmplugin import stack
from mmplugin.evaluation.detection_errors import CORRECT, KINDS, classify_errors

stack.import_quietly('mmseg.evaluation')

from mmplugin.evaluation.segmentation import SegmentationMetric, confusion  # noqa: E402

SIDE = st.integers(0, 6)
BOXES = st.lists(st.tuples(SIDE, SIDE, st.integers(1, 6), st.integers(1, 6), st.integers(0, 2)), max_size=6)


def cells(box: tuple) -> set:
    """Return the unit squares that a box of integers covers."""
    x, y, width, height, _ = box
    return {(i, j) for i in range(x, x + width) for j in range(y, y + height)}


def overlap(a: tuple, b: tuple) -> float:
    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


def slow_errors(found: list[tuple], objects: list[tuple]) -> dict[str, int]:
    """Classify detections, best first, by the definition of each kind."""
    counts, taken, explained, wrong = dict.fromkeys((CORRECT, *KINDS), 0), set(), set(), []
    for box in found:
        same = [(overlap(box, o), -i) for i, o in enumerate(objects) if o[4] == box[4] and i not in taken]
        if same and max(same)[0] >= 0.5:
            taken.add(-max(same)[1])
            counts[CORRECT] += 1
        else:
            wrong.append(box)
    for box in wrong:
        same = [(overlap(box, o), -i) for i, o in enumerate(objects) if o[4] == box[4]]
        other = [(overlap(box, o), -i) for i, o in enumerate(objects) if o[4] != box[4]]
        best_same, best_other = max(same, default=(0.0, 0)), max(other, default=(0.0, 0))
        if best_same[0] >= 0.5:
            counts['duplicate'] += 1
        elif best_other[0] >= 0.5:
            counts['classification'] += 1
            explained.add(-best_other[1])
        elif best_same[0] >= 0.1:
            counts['localization'] += 1
            explained.add(-best_same[1])
        else:
            counts['both' if best_other[0] >= 0.1 else 'background'] += 1
    counts['missed'] = len(set(range(len(objects))) - taken - explained)
    return counts


@settings(max_examples=200)
@given(found=BOXES, objects=BOXES)
def test_error_kinds_equal_their_definitions(found, objects):
    def arrays(boxes: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array(boxes, float).reshape(-1, 5)
        return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1), rows[:, 4].astype(int)

    (boxes, labels), (true_boxes, true_labels) = arrays(found), arrays(objects)
    counts = classify_errors(boxes, labels, np.linspace(1, 0.5, len(found)), true_boxes, true_labels)
    assert counts == slow_errors(found, objects)
    assert sum(counts.values()) == len(found) + counts['missed']


@settings(max_examples=60)
@given(
    seed=SEEDS,
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    classes=st.integers(1, 5),
    ignored=st.sampled_from((255, 0)),
    images=st.integers(1, 3),
)
def test_the_confusion_matrix_and_iou_equal_loops_over_pixels(seed, size, classes, ignored, images):
    rng = np.random.default_rng(seed)
    metric = SegmentationMetric(ignore_index=ignored)
    metric.dataset_meta = {'classes': [str(i) for i in range(classes)]}
    matrix = np.zeros((classes + 1, classes), dtype=int)
    for _ in range(images):
        target, prediction = rng.choice([*range(classes), 255, classes + 1], size), rng.integers(0, classes, size)
        target[0, 0], prediction[0, 0] = classes - 1, classes - 1
        for t, p in zip(target.ravel(), prediction.ravel(), strict=True):
            if t != ignored:
                matrix[min(t, classes), p] += 1
        valid = target != ignored
        assert confusion(target[valid], prediction[valid], classes).sum() == valid.sum()
        labels = {
            'gt_sem_seg': {'data': torch.from_numpy(target)[None]},
            'pred_sem_seg': {'data': torch.from_numpy(prediction)[None]},
        }
        metric.process({}, [labels])
    if not matrix[:-1].sum():
        return
    metric.evaluate(images)
    assert np.array_equal(metric.matrix, matrix[:-1])
    for label, iou in enumerate(metric.per_class()['IoU']):
        union = matrix[label].sum() + matrix[:, label].sum() - matrix[label, label]
        assert np.isnan(iou) if not union else np.isclose(iou, 100 * matrix[label, label] / union)
