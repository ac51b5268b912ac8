"""``--data-root D --classes a,b``: a user's own folder, in the layouts people have."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmplugin.engine.config import load_config
from mmplugin.errors import UserError

CAT, DOG = {'id': 7, 'name': 'cat'}, {'id': 9, 'name': 'dog'}


def _coco(root: Path, annotation: str, images: str, split: str, categories: Sequence[dict] = (CAT, DOG)) -> None:
    """One picture with one dog."""
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / annotation).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / images / f'{split}.jpg'), np.zeros((40, 50, 3), dtype=np.uint8))
    content = {
        'images': [{'id': 1, 'file_name': f'{split}.jpg', 'width': 50, 'height': 40}],
        'categories': categories,
        'annotations': [{'id': 1, 'image_id': 1, 'category_id': 9, 'bbox': [5, 5, 20, 20], 'area': 400, 'iscrowd': 0}],
    }
    (root / annotation).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('annotation', 'images', 'splits'),
    [
        ('annotations/{}.json', '{}', ('train', 'val')),
        ('annotations/instances_{}.json', 'images/{}', ('train2017', 'val2017')),
        ('{}/_annotations.coco.json', '{}', ('train', 'valid')),
        ('annotations/{}.json', 'images', ('train', 'val')),
    ],
)
@pytest.mark.parametrize('name', ['maskrcnn_v2_s0', 'retinanet_evit_m0'])
def test_detection_layouts(tmp_path: Path, name: str, annotation: str, images: str, splits: tuple[str, str]):
    for split in splits:
        _coco(tmp_path, annotation.format(split), images.format(split), split)
    cfg = load_config(name, data_root=tmp_path, classes=['dog'])
    for loader, split in zip((cfg.train_dataloader, cfg.val_dataloader), splits, strict=True):
        dataset = loader.dataset
        assert (tmp_path / dataset.ann_file).is_file()
        assert (tmp_path / dataset.data_prefix.img / f'{split}.jpg').is_file()
        assert dataset.metainfo.classes == ('dog',)
    evaluated = {evaluator.ann_file for evaluator in cfg.test_evaluator if 'ann_file' in evaluator}
    assert evaluated == {str(tmp_path / annotation.format(splits[1]))}
    head = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    assert head.num_classes == 1
    if 'roi_head' in cfg.model:
        assert cfg.model.roi_head.mask_head.num_classes == 1
    every = load_config(name, data_root=tmp_path)
    assert every.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')


def _without_type(dataset: dict) -> dict:
    return {key: value for key, value in dataset.items() if key not in ('type', 'pipeline')}


@pytest.mark.parametrize('categories', [(CAT, DOG), (DOG, CAT)])
@pytest.mark.parametrize('asked', [['cat', 'dog'], ['dog', 'cat'], ['dog'], None])
def test_a_dog_is_called_a_dog_in_whatever_order_the_names_come(tmp_path: Path, categories, asked):
    for split in ('train', 'val'):
        _coco(tmp_path, f'{split}.json', split, split, categories)
    cfg = load_config('retinanet_v2_s0', data_root=tmp_path, classes=asked)
    from mmdet.datasets import CocoDataset

    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = CocoDataset(**_without_type(loader.dataset), pipeline=[])
        (dog,) = dataset.get_data_info(0)['instances']
        assert dataset.metainfo['classes'][dog['bbox_label']] == 'dog'


def test_two_files_in_two_orders_are_refused(tmp_path: Path):
    _coco(tmp_path, 'train.json', 'train', 'train', (CAT, DOG))
    _coco(tmp_path, 'val.json', 'val', 'val', (DOG, CAT))
    with pytest.raises(UserError, match=r'val\.json lists categories as dog, cat, the training file as cat, dog'):
        load_config('retinanet_v2_s0', data_root=tmp_path)
    load_config('retinanet_v2_s0', data_root=tmp_path, classes=['dog'])


def test_segmentation_folder(tmp_path: Path):
    for split in ('train', 'val'):
        for kind in ('images', 'labels'):
            (tmp_path / kind / split).mkdir(parents=True)
        (tmp_path / 'images' / split / 'a.png').touch()
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=['road', 'rest'])
    dataset = cfg.val_dataloader.dataset
    assert (dataset.type, dataset.img_suffix, dataset.reduce_zero_label) == ('BaseSegDataset', '.png', False)
    assert dataset.data_prefix == dict(img_path='images/val', seg_map_path='labels/val')
    assert cfg.model.decode_head.num_classes == 2


def _masks(root: Path, pixels: list) -> None:
    for split in ('train', 'val'):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
            cv2.imwrite(str(root / kind / split / 'a.png'), np.array(pixels, dtype=np.uint8))


@pytest.mark.parametrize(
    ('pixels', 'classes', 'meant'),
    [
        ([[0, 1, 2, 255]], ['road', 'roof'], [255, 0, 1, 255]),  # as ADE20K: 0 is other
        ([[1, 2, 2, 1]], ['road', 'roof'], [0, 1, 1, 0]),
        ([[0, 1, 1, 255]], ['road', 'roof'], [0, 1, 1, 255]),
        ([[0, 1, 2, 255]], ['rest', 'road', 'roof'], [0, 1, 2, 255]),
        ([[0, 1, 1, 0]], ['road'], [0, 1, 1, 0]),  # a background without a name, which the check then reports
        ([[0, 7, 7, 0]], ['road', 'roof'], [0, 7, 7, 0]),  # a class too many, likewise
    ],
)
def test_whether_0_is_a_class_is_seen_in_the_masks(tmp_path: Path, monkeypatch, pixels, classes, meant):
    _masks(tmp_path, pixels)
    said = []
    monkeypatch.setattr('mmplugin.engine.own_data.print_log', lambda text, logger: said.append(text))
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=classes)
    from mmseg.datasets import BaseSegDataset

    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = BaseSegDataset(**_without_type(loader.dataset), pipeline=[dict(type='mmseg.LoadAnnotations')])
        labels = dataset[0]['gt_seg_map']
        assert labels.ravel().tolist() == meant
    shifted = meant != pixels[0]
    assert [("0 counts as unlabelled, 1 as 'road'" in line) for line in said] == [True] * shifted


def test_a_setting_of_the_user_decides_whether_0_is_a_class(tmp_path: Path):
    _masks(tmp_path, [[0, 1, 2]])
    keys = [f'{split}_dataloader.dataset.reduce_zero_label' for split in ('train', 'val', 'test')]
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=['a', 'b'], cfg_options=dict.fromkeys(keys, False))
    assert not any(cfg[f'{split}_dataloader'].dataset.reduce_zero_label for split in ('train', 'val', 'test'))


def test_masks_that_hold_no_labels_decide_nothing(tmp_path: Path):
    _masks(tmp_path, [[[0, 1, 2], [2, 2, 2]]])  # colours
    (tmp_path / 'labels' / 'train' / 'b.png').write_bytes(b'no picture')
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=['a', 'b'])
    assert cfg.train_dataloader.dataset.reduce_zero_label is False


def test_says_what_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r'annotations/train\.json'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path)
    _coco(tmp_path, 'annotations/train.json', 'train', 'train')
    with pytest.raises(UserError, match=r"train\.json has no category 'cow'; allowed in --classes: cat, dog"):
        load_config('maskrcnn_v2_s0', data_root=tmp_path, classes=['cow'])
    (tmp_path / 'train' / 'train.jpg').unlink()
    with pytest.raises(UserError, match=r'lists train\.jpg, which is in none of'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path)
    with pytest.raises(UserError, match='needs --classes'):
        load_config('semfpn_v2_s0', data_root=tmp_path)
