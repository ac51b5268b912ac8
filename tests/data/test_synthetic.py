"""The built-in sets are exact and deterministic, mmdet and mmseg read them, and color does not tell the class."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mmengine.dataset import Compose
from pycocotools import mask as rle

from mmplugin.data.synthetic import _DETECTION, _SEGMENTATION, _random, ensure_mini_ade, ensure_mini_coco, mini_crops
from mmplugin.data.synthetic.scene import BACKGROUND_NAMES, MIN_PIXELS, NO_CLASS, OBJECT_NAMES, draw_scene


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return ensure_mini_coco(tmp_path_factory.mktemp('mini'), train=6, val=3)


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    return ensure_mini_ade(tmp_path_factory.mktemp('mini'), train=5, val=2)


def _scene(task, split, index):
    return draw_scene(_random(task, split, index), only_landscapes=task == _SEGMENTATION)


def test_mmdet_loads_exactly_the_drawn_masks(coco):
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    # Classes instead of names, whose meaning depends on the last scope that another test has used.
    pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True, with_mask=True)]
    dataset = CocoDataset(
        ann_file='annotations/val.json',
        data_root=str(coco.root),
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=coco.classes),
        pipeline=pipeline,
    )
    assert len(dataset) == 3
    for index in range(3):
        drawn, loaded = _scene(_DETECTION, 1, index), dataset[index]
        assert loaded['gt_bboxes_labels'].tolist() == drawn.labels
        np.testing.assert_array_equal(loaded['gt_masks'].masks.astype(bool), np.stack(drawn.masks))
        for mask, box in zip(drawn.masks, loaded['gt_bboxes'].tensor.tolist(), strict=True):
            y, x = np.nonzero(mask)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        error = np.abs(loaded['img'][..., ::-1].astype(float) - drawn.image).mean()  # JPEG; mmcv reads BGR
        assert error < 12


def test_mmseg_loads_exactly_the_drawn_labels(ade):
    from mmseg.datasets import BaseSegDataset, LoadAnnotations

    dataset = BaseSegDataset(
        data_root=str(ade.root),
        metainfo=dict(classes=ade.classes),
        reduce_zero_label=True,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    )
    dataset.pipeline = Compose([])
    assert len(dataset) == 2
    assert ade.classes == BACKGROUND_NAMES + OBJECT_NAMES
    for index in range(2):
        loaded = LoadAnnotations()(dataset.get_data_info(index))
        np.testing.assert_array_equal(loaded['gt_seg_map'], _scene(_SEGMENTATION, 1, index).semantic)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_predicting_the_ground_truth_scores_1_and_shifting_it_scores_less(coco, kind):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def precision(shift):
        ground_truth = COCO(str(coco.root / 'annotations' / 'val.json'))
        predictions = []
        for annotation in ground_truth.dataset['annotations']:
            x, y, w, h = annotation['bbox']
            mask = np.roll(ground_truth.annToMask(annotation), shift, axis=1)
            predictions.append({
                'image_id': annotation['image_id'], 'category_id': annotation['category_id'], 'score': 1.0,
                'bbox': [x + shift, y, w, h], 'segmentation': rle.encode(np.asfortranarray(mask)),
            })  # fmt: skip
            if kind == 'segm':
                del predictions[-1]['bbox']  # otherwise loadRes makes masks from the boxes
        run = COCOeval(ground_truth, ground_truth.loadRes(predictions), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
        return run.stats[0]

    assert precision(0) == pytest.approx(1.0)
    assert precision(6) < 0.9


def test_every_object_is_labeled_visible_and_varies_in_size():
    with_distractor = varied = 0
    for index in range(60):
        drawn = _scene(_SEGMENTATION, 0, index)
        assert sum(mask.astype(int) for mask in drawn.masks).max() <= 1, 'visible masks overlap'
        owned = np.zeros(drawn.semantic.shape, bool)
        for mask, label in zip(drawn.masks, drawn.labels, strict=True):
            assert mask.sum() >= MIN_PIXELS
            assert (drawn.semantic[mask] == len(BACKGROUND_NAMES) + label).all()
            owned |= mask
        objects = (drawn.semantic >= len(BACKGROUND_NAMES)) & (drawn.semantic != NO_CLASS)
        np.testing.assert_array_equal(objects, owned)  # every object has an annotation
        extents = [max(np.ptp(np.nonzero(mask), axis=1)) for mask in drawn.masks]
        varied += max(extents) > 2 * min(extents)
        with_distractor += len(extents) < 6 and (drawn.semantic == NO_CLASS).any()
    assert varied >= 20  # scenes whose largest object is more than twice as long as the smallest
    assert with_distractor > 10


def test_color_does_not_tell_the_class():
    """A vote of the five nearest neighbors by mean color is hardly better than guessing one of six classes."""
    colors, labels = [], []
    for index in range(120):
        drawn = _scene(_DETECTION, 0, index)
        colors += [drawn.image[mask].mean(axis=0) for mask in drawn.masks]
        labels += drawn.labels
    colors, labels = np.array(colors), np.array(labels)
    assert np.bincount(labels, minlength=6).min() > 40
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    near = labels[np.argsort(distance, axis=1)[:, :5]]
    votes = np.array([np.bincount(row, minlength=6).argmax() for row in near])
    assert (votes == labels).mean() < 0.3


def test_the_same_parameters_give_the_same_bytes_and_others_another_folder(coco, tmp_path):
    again = ensure_mini_coco(tmp_path, train=6, val=3)
    for split in ('train', 'val'):
        name = f'annotations/{split}.json'
        assert (again.root / name).read_bytes() == (coco.root / name).read_bytes()
    assert (again.root / 'val/000002.jpg').read_bytes() == (coco.root / 'val/000002.jpg').read_bytes()
    assert again.root.name == coco.root.name
    assert ensure_mini_coco(tmp_path, train=6, val=2).root != again.root


def test_an_existing_set_is_not_changed(coco):
    before = {path: path.stat().st_mtime_ns for path in coco.root.rglob('*')}
    ensure_mini_coco(coco.root.parent, train=6, val=3)
    assert {path: path.stat().st_mtime_ns for path in coco.root.rglob('*')} == before


def test_drawing_in_parallel_gives_one_complete_set(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: ensure_mini_coco(tmp_path, train=3, val=2), range(4)))
    assert len({made.root for made in sets}) == 1
    assert list(tmp_path.iterdir()) == [sets[0].root], 'drafts left behind'
    assert len(json.loads((sets[0].root / 'annotations/train.json').read_text())['images']) == 3


def test_a_crop_depends_only_on_its_index():
    images, labels = mini_crops(4, size=48)
    later, later_labels = mini_crops(2, size=48, start=2)
    assert images.shape == (4, 48, 48, 3)
    np.testing.assert_array_equal(images[2:], later)
    assert labels[2:].tolist() == later_labels.tolist()
