"""SegmentationMetric against mmseg's IoUMetric, loops over pixels, and cases worked out by hand."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch

import mmplugin  # noqa: F401  stock mmseg cannot be imported without its operators
from mmplugin import stack

stack.import_quietly('mmseg.evaluation')

from mmseg.evaluation import IoUMetric  # noqa: E402

from mmplugin.evaluation.segmentation import SegmentationMetric, boundary  # noqa: E402


def _sample(target: np.ndarray, prediction: np.ndarray) -> dict:
    return {
        'gt_sem_seg': {'data': torch.from_numpy(target)[None]},
        'pred_sem_seg': {'data': torch.from_numpy(prediction)[None]},
        'img_path': 'image.jpg',
    }


def _metric(classes: int, kind: type = SegmentationMetric, **options) -> IoUMetric:
    metric = kind(**options)
    metric.dataset_meta = {'classes': [str(i) for i in range(classes)]}
    return metric


def _random_samples(seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(3):
        target, prediction = rng.integers(0, 4, (2, 17, 23))  # class 4 does not occur
        target[rng.random(target.shape) < 0.2] = 255
        samples.append(_sample(target, prediction))
    return samples


def test_results_equal_a_loop_over_pixels():
    metric, expected = _metric(5), np.zeros((5, 5), dtype=int)
    for sample in _random_samples():
        metric.process({}, [sample])
        target, prediction = sample['gt_sem_seg']['data'].ravel(), sample['pred_sem_seg']['data'].ravel()
        for t, p in zip(target.tolist(), prediction.tolist(), strict=True):
            if t != 255:
                expected[t, p] += 1
    results = metric.evaluate(3)
    np.testing.assert_array_equal(metric.matrix, expected)
    hit = [expected[i, i] for i in range(4)]
    iou = [100 * hit[i] / (expected[i].sum() + expected[:, i].sum() - hit[i]) for i in range(4)]
    assert results['mIoU'] == pytest.approx(np.mean(iou), abs=0.01)  # the class without pixels does not count
    assert results['mAcc'] == pytest.approx(np.mean([100 * hit[i] / expected[i].sum() for i in range(4)]), abs=0.01)
    assert results['aAcc'] == pytest.approx(100 * sum(hit) / expected.sum(), abs=0.01)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(iou_metrics=['mIoU', 'mDice', 'mFscore'], beta=2),
        dict(nan_to_num=0, prefix='val'),
        dict(ignore_index=3),
    ],
)
def test_names_and_values_are_those_of_iou_metric(options: dict):
    samples = _random_samples()
    samples[0]['gt_sem_seg']['data'][0, 0] = 77  # neither a class nor ignored
    results = []
    for kind in (IoUMetric, SegmentationMetric):
        metric = _metric(5, kind, **options)
        metric.process({}, samples[:2])
        metric.process({}, samples[2:])
        results.append(metric.evaluate(3))
    extra = results[1].keys() - results[0].keys()
    assert {name.removeprefix('val/') for name in extra} == {'mBIoU'}
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, abs=0.01), name


def test_predictions_are_saved_as_iou_metric_does(tmp_path):
    metric = _metric(4, output_dir=str(tmp_path), format_only=True)
    metric.process({}, _random_samples())
    metric.evaluate(3)
    assert [path.name for path in tmp_path.iterdir()] == ['image.png']
    assert metric.table().rows == []


def test_every_evaluation_starts_from_zero():
    metric = _metric(2, boundary_iou=False)
    target = np.zeros((4, 4), dtype=np.int64)
    for prediction in (target, 1 - target):
        metric.process({}, [_sample(target, prediction)])
        results = metric.evaluate(1)
    assert results['aAcc'] == 0


def test_memory_does_not_grow_with_the_number_of_images():
    metric = _metric(150, boundary_iou=False)
    rng = np.random.default_rng(0)
    sample = _sample(rng.integers(0, 150, (64, 64)), rng.integers(0, 150, (64, 64)))
    metric.process({}, [sample])
    tracemalloc.start()
    for _ in range(2000):
        metric.process({}, [sample])
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 400_000  # one matrix of 150 x 150 takes 180,000 bytes


def test_boundary_is_the_band_within_a_distance_of_the_outside():
    mask = np.zeros((9, 9), dtype=bool)
    mask[:, 2:9] = True  # touches three borders of the image
    expected = mask.copy()
    expected[2:7, 4:7] = False
    np.testing.assert_array_equal(boundary(mask, 2), expected)


def test_boundary_iou_of_a_shifted_square():
    target, prediction = np.zeros((2, 50, 50), dtype=np.int64)
    target[10:30, 10:30] = 1
    prediction[10:30, 11:31] = 1  # the diagonal is 70.7: bands of 1 pixel, 76 pixels each
    metric = _metric(2)
    metric.process({}, [_sample(target, prediction)])
    metric.evaluate(1)
    # the horizontal sides share 19 pixels each, the vertical sides none: 38 of 76 + 76 - 38
    assert metric.per_class()['BIoU'][1] == pytest.approx(100 * 38 / 114)
    assert metric.table().rows[1] == ('1', '90.5', '95.0', '33.3')


def test_balanced_cross_entropy_is_a_weighted_mean_over_valid_pixels():
    from mmplugin.engine.losses import BalancedCrossEntropy

    pred, label = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    label[0, :2], weights = 255, [1.0, 4.0, 0.5]
    total = weight = 0.0
    for image, row, column in (label != 255).nonzero().tolist():
        target = int(label[image, row, column])
        total -= weights[target] * float(pred[image, :, row, column].log_softmax(0)[target])
        weight += weights[target]
    loss = BalancedCrossEntropy(weights)
    torch.testing.assert_close(loss(pred, label), torch.tensor(total / weight))
    assert loss(pred, torch.full_like(label, 255)) == 0  # no valid pixel, and not NaN
