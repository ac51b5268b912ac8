"""Detection metrics against pycocotools' names and values, and kinds of errors worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, DefaultScope

from mmplugin import stack
from mmplugin.config_edits import detailed_evaluators
from mmplugin.data.synthetic import ensure_mini_coco
from mmplugin.deploy.samples import all_digits
from mmplugin.evaluation.detection_errors import ErrorBreakdown, box_iou, classify_errors


def test_box_iou_by_hand():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=float)
    np.testing.assert_allclose(box_iou(boxes, np.array([[5, 0, 15, 10.0]])), [[1 / 3], [0]])


def test_every_kind_of_error_by_hand():
    true_boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]], float)
    true_labels = np.array([0, 0, 1, 1, 2])
    detections = [  # box, label, score, kind
        ([0, 0, 10, 10], 0, 0.9, 'correct'),
        ([0, 0, 10, 9], 0, 0.8, 'duplicate'),
        ([20, 0, 30, 10], 1, 0.7, 'classification'),
        ([44, 0, 54, 10], 1, 0.6, 'localization'),  # IoU 6 / 14
        ([65, 0, 75, 10], 0, 0.5, 'both'),  # IoU 1 / 3, wrong class
        ([200, 200, 210, 210], 2, 0.4, 'background'),
    ]
    boxes, labels, scores, kinds = zip(*detections, strict=True)
    counts = classify_errors(np.array(boxes, float), np.array(labels), np.array(scores), true_boxes, true_labels)
    expected = dict.fromkeys(counts, 0)
    for kind in kinds:
        expected[kind] += 1
    expected['missed'] = 2  # the fourth, which only "both" is near, and the fifth
    assert counts == expected


def test_images_without_detections_or_without_objects():
    no_boxes, no_labels = np.zeros((0, 4)), np.zeros(0, dtype=int)
    box, label = np.array([[0, 0, 5, 5.0]]), np.array([0])
    assert classify_errors(no_boxes, no_labels, no_labels, box, label)['missed'] == 1
    assert classify_errors(box, label, np.array([0.9]), no_boxes, no_labels)['background'] == 1


def test_error_counts_start_from_zero_and_skip_images_without_ground_truth():
    metric = ErrorBreakdown()
    box, label = torch.tensor([[0, 0, 5, 5.0]]), torch.tensor([0])
    found = {'bboxes': box, 'labels': label, 'scores': torch.tensor([0.9])}
    for _ in range(2):
        metric.process({}, [{'pred_instances': found, 'gt_instances': {'bboxes': box, 'labels': label}}])
        metric.process({}, [{'pred_instances': found, 'gt_instances': {}}])
        assert metric.evaluate(2)['errors/correct'] == 1
    assert sum(metric.evaluate(0).values()) == 0


@pytest.fixture(scope='module')
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...], list[dict]]:
    """Annotations, class names, and detections that are the ground truth, shifted and partly mislabeled."""
    from pycocotools.coco import COCO

    mini = ensure_mini_coco(tmp_path_factory.mktemp('mini'), 1, 6)
    path = mini.root / 'annotations/val.json'
    coco, rng, samples = COCO(str(path)), np.random.default_rng(0), []
    for image_id, image in coco.imgs.items():
        objects = coco.loadAnns(coco.getAnnIds(image_id))
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (ann['bbox'] for ann in objects)], float)
        boxes += rng.normal(0, 4, boxes.shape)
        labels = np.array([ann['category_id'] - 1 for ann in objects])
        labels[rng.random(len(labels)) < 0.2] = 0
        found = {
            'bboxes': torch.from_numpy(boxes),
            'scores': torch.from_numpy(rng.random(len(boxes))),
            'labels': torch.from_numpy(labels),
            'masks': torch.from_numpy(np.stack([np.roll(coco.annToMask(ann), 3, 1) for ann in objects]).astype(bool)),
        }
        size = (image['height'], image['width'])
        samples.append({'img_id': image_id, 'ori_shape': size, 'pred_instances': found, 'gt_instances': {}})
    return path, mini.classes, samples


def _evaluate(config: dict, classes: tuple[str, ...], samples: list[dict]) -> tuple[dict[str, float], object]:
    stack.import_quietly('mmdet.evaluation')
    with DefaultScope.overwrite_default_scope('mmdet'):  # another test may have left mmseg's
        metric = METRICS.build(config)
    metric.dataset_meta = {'classes': classes}
    metric.process({}, samples)
    return metric.evaluate(len(samples)), metric


def _kinds() -> list[str]:
    return ['CocoMetric', 'FasterCocoMetric'] if stack.current() is stack.ONEDL else ['CocoMetric']


@pytest.mark.parametrize('kind', _kinds())
def test_detailed_metrics_keep_the_names_and_values_of_coco_metric(kind: str, scene):
    path, classes, samples = scene
    config = dict(type=kind, ann_file=str(path), metric=['bbox', 'segm'])
    plain, _ = _evaluate(config, classes, samples)
    assert 0.1 < plain['coco/bbox_mAP'] != plain['coco/segm_mAP'] > 0.1
    for classwise in (False, True):
        original, _ = _evaluate({**config, 'classwise': classwise}, classes, samples)
        detailed, metric = _evaluate(detailed_evaluators({**config, 'classwise': classwise})[0], classes, samples)
        for name, value in original.items():
            assert detailed[name] == pytest.approx(value, nan_ok=True), name
        assert list(detailed)[: len(original)] == list(original)
        assert len(detailed) == len(original) + 2 * len(classes)

    rows = metric.table().rows
    assert [row[0] for row in rows] == list(classes)
    for column, kind_of_ap in ((1, 'bbox'), (2, 'segm')):
        alone, _ = _evaluate({**config, 'metric': kind_of_ap, 'classwise': True}, classes, samples)
        for row in rows:
            value = detailed[f'coco/{kind_of_ap}_{row[0]}_precision']
            assert value == pytest.approx(float(alone[f'coco/{row[0]}_precision']), nan_ok=True)
            assert row[column] == ('n/a' if np.isnan(value) else f'{value:.3f}')


def test_ap_is_zero_without_detections(scene):
    path, classes, samples = scene
    nothing = {'bboxes': torch.zeros(0, 4), 'scores': torch.zeros(0), 'labels': torch.zeros(0, dtype=torch.long)}
    samples = [{**sample, 'pred_instances': {**nothing, 'masks': torch.zeros(0, 9, 9).bool()}} for sample in samples]
    for kind in ('DetectionMetric', 'FasterDetectionMetric')[: len(_kinds())]:
        results, metric = _evaluate(dict(type=kind, ann_file=str(path), metric=['bbox', 'segm']), classes, samples)
        assert results['coco/bbox_mAP'] == results['coco/segm_mAP_50'] == 0
        assert metric.table().rows == []


@pytest.mark.skipif(stack.current() is stack.STOCK, reason='stock mmdet has no FasterCocoMetric')
def test_pycocotools_and_the_fast_evaluator_agree(scene):
    path, classes, samples = scene
    config = dict(ann_file=str(path), metric=['bbox', 'segm'])
    slow, _ = _evaluate(dict(config, type='DetectionMetric'), classes, samples)
    fast, _ = _evaluate(dict(config, type='FasterDetectionMetric'), classes, samples)
    assert slow == pytest.approx(fast, abs=1e-3, nan_ok=True)


def test_evaluators_of_users_keep_working():
    other = dict(type='VOCMetric', metric='mAP')
    coco = dict(type='mmdet.CocoMetric', ann_file='a.json')
    formatted = dict(type='CocoMetric', format_only=True, outfile_prefix='out')
    assert detailed_evaluators(other) == [other]
    kinds = [metric['type'] for metric in detailed_evaluators([coco, other, formatted])]
    assert kinds == ['DetectionMetric', 'ErrorBreakdown', 'VOCMetric', 'DetectionMetric']
    assert coco['type'] == 'mmdet.CocoMetric'
    assert detailed_evaluators(dict(type='IoUMetric', iou_metrics=['mDice'])) == [
        dict(type='SegmentationMetric', iou_metrics=['mDice'])
    ]


def test_all_digits_are_those_before_rounding(scene):
    path, classes, samples = scene
    for kind in _kinds():
        config = dict(type=kind, ann_file=str(path), metric='bbox')
        rounded, metric = _evaluate(config, classes, samples)
        metric.process({}, samples)
        with all_digits([metric]):
            exact = metric.evaluate(len(samples))
        assert exact['coco/bbox_mAP'] != rounded['coco/bbox_mAP']
        assert exact['coco/bbox_mAP'] == pytest.approx(rounded['coco/bbox_mAP'], abs=0.0005)
        again, _ = _evaluate(config, classes, samples)
        assert again == pytest.approx(rounded, nan_ok=True)
