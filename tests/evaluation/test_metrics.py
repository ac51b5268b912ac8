"""Measures against slow truths and cases worked by hand."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch

from mmplugin.evaluation.detection_errors import box_iou, break_down
from mmplugin.evaluation.segmentation import SegmentationMetric, boundary


def _sample(truth: np.ndarray, found: np.ndarray) -> dict:
    return {
        'gt_sem_seg': {'data': torch.from_numpy(truth)[None]},
        'pred_sem_seg': {'data': torch.from_numpy(found)[None]},
    }


def _metric(classes: int, **settings) -> SegmentationMetric:
    metric = SegmentationMetric(**settings)
    metric.dataset_meta = {'classes': [str(i) for i in range(classes)]}
    return metric


def test_segmentation_equals_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    metric = _metric(5)
    wanted = np.zeros((5, 5), dtype=int)
    for _ in range(3):
        truth, found = rng.integers(0, 4, (2, 17, 23))  # class 4 never occurs
        truth[rng.random(truth.shape) < 0.2] = 255
        metric.process({}, [_sample(truth, found)])
        for t, f in zip(truth.ravel(), found.ravel(), strict=True):
            if t != 255:
                wanted[t, f] += 1
    results = metric.evaluate(3)
    np.testing.assert_array_equal(metric.matrix, wanted)
    hit = [wanted[i, i] for i in range(4)]
    iou = [100 * hit[i] / (wanted[i].sum() + wanted[:, i].sum() - hit[i]) for i in range(4)]
    assert results['mIoU'] == pytest.approx(np.mean(iou), abs=0.01)  # the class that never occurs does not count
    assert results['mAcc'] == pytest.approx(np.mean([100 * hit[i] / wanted[i].sum() for i in range(4)]), abs=0.01)
    assert results['aAcc'] == pytest.approx(100 * sum(hit) / wanted.sum(), abs=0.01)


def test_evaluating_again_starts_from_nothing():
    metric = _metric(2, boundary_iou=False)
    truth = np.zeros((4, 4), dtype=np.int64)
    for found in (truth, 1 - truth):
        metric.process({}, [_sample(truth, found)])
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
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 400_000  # one matrix of 150 x 150 takes 180,000 bytes


def test_boundary_is_the_band_within_a_distance_of_the_outside():
    mask = np.zeros((9, 9), dtype=bool)
    mask[:, 2:9] = True  # touches three borders of the image
    band = boundary(mask, 2)
    wanted = mask.copy()
    wanted[2:7, 4:7] = False
    np.testing.assert_array_equal(band, wanted)


def test_boundary_iou_of_a_shifted_square_worked_by_hand():
    truth, found = np.zeros((2, 50, 50), dtype=np.int64)
    truth[10:30, 10:30] = 1
    found[10:30, 11:31] = 1  # diagonal 70.7: bands of 1 pixel, 76 pixels round
    metric = _metric(2)
    metric.process({}, [_sample(truth, found)])
    metric.evaluate(1)
    # the horizontal sides share 19 pixels each, the vertical ones none: 38 of 76 + 76 - 38
    assert metric.table()['BIoU'][1] == pytest.approx(100 * 38 / 114)


def test_box_iou_by_hand():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=float)
    np.testing.assert_allclose(box_iou(boxes, np.array([[5, 0, 15, 10.0]])), [[1 / 3], [0]])


def test_every_kind_of_error_by_hand():
    true_boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]], float)
    true_labels = np.array([0, 0, 1, 1, 2])
    detections = [  # box, label, score
        ([0, 0, 10, 10], 0, 0.9, 'correct'),
        ([0, 0, 10, 9], 0, 0.8, 'duplicate'),
        ([20, 0, 30, 10], 1, 0.7, 'classification'),
        ([44, 0, 54, 10], 1, 0.6, 'localisation'),  # IoU 6 / 14
        ([65, 0, 75, 10], 0, 0.5, 'both'),  # IoU 1 / 3, wrong class
        ([200, 200, 210, 210], 2, 0.4, 'background'),
    ]
    boxes, labels, scores, kinds = zip(*detections, strict=True)
    counts = break_down(np.array(boxes, float), np.array(labels), np.array(scores), true_boxes, true_labels)
    wanted = dict.fromkeys(counts, 0)
    for kind in kinds:
        wanted[kind] += 1
    wanted['missed'] = 2  # the fourth, which only "both" comes near, and the fifth
    assert counts == wanted


def test_no_detections_and_no_truth():
    none, labels = np.zeros((0, 4)), np.zeros(0, dtype=int)
    one, label = np.array([[0, 0, 5, 5.0]]), np.array([0])
    assert break_down(none, labels, labels, one, label)['missed'] == 1
    assert break_down(one, label, np.array([0.9]), none, labels)['background'] == 1


def test_pycocotools_and_the_fast_evaluator_agree(tmp_path):
    pytest.importorskip('mmdet.evaluation.metrics.faster_coco_metric', reason='stock mmdet has no FasterCocoMetric')
    from mmdet.registry import METRICS
    from mmengine.registry import DefaultScope

    from mmplugin.data.synthetic import ensure_mini_coco

    mini = ensure_mini_coco(tmp_path, 1, 6)
    from pycocotools.coco import COCO

    coco = COCO(str(mini.root / 'annotations/val.json'))
    rng = np.random.default_rng(0)
    results = []
    for kind in ('CocoMetric', 'FasterCocoMetric'):
        with DefaultScope.overwrite_default_scope('mmdet'):  # another test may have left mmseg's
            metric = METRICS.build(dict(type=kind, ann_file=str(mini.root / 'annotations/val.json'), metric='bbox'))
        metric.dataset_meta = {'classes': mini.classes}
        rng = np.random.default_rng(0)
        for image_id, image in coco.imgs.items():
            truth = coco.loadAnns(coco.getAnnIds(image_id))
            boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (ann['bbox'] for ann in truth)], float)
            boxes += rng.normal(0, 4, boxes.shape)
            labels = np.array([ann['category_id'] - 1 for ann in truth])
            labels[rng.random(len(labels)) < 0.2] = 0
            found = {
                'bboxes': torch.from_numpy(boxes),
                'scores': torch.from_numpy(rng.random(len(boxes))),
                'labels': torch.from_numpy(labels),
            }
            shape = (image['height'], image['width'])
            metric.process({}, [{'img_id': image_id, 'ori_shape': shape, 'pred_instances': found}])
        results.append(metric.evaluate(len(coco.imgs)))
    assert 0.1 < results[0]['coco/bbox_mAP'] < 0.9
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_balanced_cross_entropy_counts_by_weight_and_skips_ignored_pixels():
    from mmplugin.engine.losses import BalancedCrossEntropy

    pred, label = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    label[0, :2], weights = 255, [1.0, 4.0, 0.5]
    lost = counted = 0.0
    for image, row, column in (label != 255).nonzero().tolist():
        true = int(label[image, row, column])
        lost -= weights[true] * float(pred[image, :, row, column].log_softmax(0)[true])
        counted += weights[true]
    loss = BalancedCrossEntropy(weights)
    torch.testing.assert_close(loss(pred, label), torch.tensor(lost / counted))
    assert loss(pred, torch.full_like(label, 255)) == 0  # nothing to learn from, and no nan
