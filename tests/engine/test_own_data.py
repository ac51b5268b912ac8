"""``--data-root FOLDER --classes a,b``: the user's data, in common layouts."""

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
    """Write one image with one dog."""
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
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(tmp_path / annotation.format(splits[1]))
    head = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    assert head.num_classes == 1
    if 'roi_head' in cfg.model:
        assert cfg.model.roi_head.mask_head.num_classes == 1
    with_all_classes = load_config(name, data_root=tmp_path)
    assert with_all_classes.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')


def test_a_list_of_evaluators_gets_the_annotations(tmp_path: Path):
    for split in ('train', 'val'):
        _coco(tmp_path, f'{split}.json', split, split)
    config = tmp_path / 'config.py'
    metrics = [dict(type='CocoMetric', ann_file='old.json'), dict(type='DumpDetResults', out_file_path='a.pkl')]
    cfg = load_config('retinanet_v2_s0')
    cfg.val_evaluator = cfg.test_evaluator = metrics
    cfg.dump(config)
    cfg = load_config(config, data_root=tmp_path)
    assert [metric.get('ann_file') for metric in cfg.val_evaluator] == [str(tmp_path / 'val.json'), None]


def _without_type(dataset: dict) -> dict:
    return {key: value for key, value in dataset.items() if key not in ('type', 'pipeline')}


@pytest.mark.parametrize('categories', [(CAT, DOG), (DOG, CAT)])
@pytest.mark.parametrize('classes', [['cat', 'dog'], ['dog', 'cat'], ['dog'], None])
def test_labels_have_the_right_names_in_any_order(tmp_path: Path, categories, classes):
    for split in ('train', 'val'):
        _coco(tmp_path, f'{split}.json', split, split, categories)
    cfg = load_config('retinanet_v2_s0', data_root=tmp_path, classes=classes)
    from mmdet.datasets import CocoDataset

    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = CocoDataset(**_without_type(loader.dataset), pipeline=[])
        (dog,) = dataset.get_data_info(0)['instances']
        assert dataset.metainfo['classes'][dog['bbox_label']] == 'dog'


def test_files_with_different_orders_of_categories_are_refused(tmp_path: Path):
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
    ('pixels', 'classes', 'expected'),
    [
        ([[0, 1, 2, 255]], ['road', 'roof'], [255, 0, 1, 255]),  # as in ADE20K: 0 is unlabeled
        ([[1, 2, 2, 1]], ['road', 'roof'], [0, 1, 1, 0]),
        ([[0, 1, 1, 255]], ['road', 'roof'], [0, 1, 1, 255]),
        ([[0, 1, 2, 255]], ['rest', 'road', 'roof'], [0, 1, 2, 255]),
        ([[0, 1, 1, 0]], ['road'], [0, 1, 1, 0]),  # an unnamed background, which the data check reports
        ([[0, 7, 7, 0]], ['road', 'roof'], [0, 7, 7, 0]),  # a class too many, which the data check reports
    ],
)
def test_the_masks_decide_whether_0_is_a_class(tmp_path: Path, monkeypatch, pixels, classes, expected):
    _masks(tmp_path, pixels)
    lines = []
    monkeypatch.setattr('mmplugin.engine.own_data.print_log', lambda text, logger: lines.append(text))
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=classes)
    from mmseg.datasets import BaseSegDataset

    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = BaseSegDataset(**_without_type(loader.dataset), pipeline=[dict(type='mmseg.LoadAnnotations')])
        labels = dataset[0]['gt_seg_map']
        assert labels.ravel().tolist() == expected
    shifted = expected != pixels[0]
    assert [("0 is read as unlabeled, 1 as 'road'" in line) for line in lines] == [True] * shifted


def test_a_setting_of_the_user_wins_over_the_masks(tmp_path: Path):
    _masks(tmp_path, [[0, 1, 2]])
    keys = [f'{split}_dataloader.dataset.reduce_zero_label' for split in ('train', 'val', 'test')]
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=['a', 'b'], cfg_options=dict.fromkeys(keys, False))
    assert not any(cfg[f'{split}_dataloader'].dataset.reduce_zero_label for split in ('train', 'val', 'test'))


def test_masks_with_colors_instead_of_labels_are_skipped(tmp_path: Path):
    _masks(tmp_path, [[[0, 1, 2], [2, 2, 2]]])  # colors
    (tmp_path / 'labels' / 'train' / 'b.png').write_bytes(b'not an image')
    cfg = load_config('semfpn_v2_s0', data_root=tmp_path, classes=['a', 'b'])
    assert cfg.train_dataloader.dataset.reduce_zero_label is False


def test_messages_name_what_is_missing(tmp_path: Path):
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
