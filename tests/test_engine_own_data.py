"""``--data-root D --classes a,b``: a user's own folder, in the layouts people have."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmplugin.engine.config import load_config
from mmplugin.errors import UserError


def _coco(root: Path, annotation: str, images: str, split: str) -> None:
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / annotation).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / images / f'{split}.jpg'), np.zeros((40, 50, 3), dtype=np.uint8))
    content = {
        'images': [{'id': 1, 'file_name': f'{split}.jpg', 'width': 50, 'height': 40}],
        'categories': [{'id': 7, 'name': 'cat'}, {'id': 9, 'name': 'dog'}],
        'annotations': [],
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


def test_says_what_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r'annotations/train\.json'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path)
    _coco(tmp_path, 'annotations/train.json', 'train', 'train')
    with pytest.raises(UserError, match=r'--classes names cow, but .* knows cat, dog'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path, classes=['cow'])
    (tmp_path / 'train' / 'train.jpg').unlink()
    with pytest.raises(UserError, match=r'lists train\.jpg, which is in none of'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path)
    with pytest.raises(UserError, match='needs --classes'):
        load_config('semfpn_v2_s0', data_root=tmp_path)
