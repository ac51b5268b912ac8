"""Checks of detection data: a clean set passes, and each spoiled copy ends in the message that mends it."""

import copy
import io
import json
import re
import shutil

import numpy as np
import pytest
from mmengine.config import Config
from rich.console import Console

from mmplugin import cli
from mmplugin.data.findings import Finding
from mmplugin.data.synthetic import ensure_mini_coco
from mmplugin.engine.check_data import check_config, show
from mmplugin.errors import UserError


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return ensure_mini_coco(tmp_path_factory.mktemp('mini'), train=5, val=3)


class Spoil:
    """A copy of the set that a test may damage, and a config for it."""

    def __init__(self, drawn, folder):
        self.root = folder / 'set'
        shutil.copytree(drawn.root, self.root)
        self.json = {name: json.loads(self.file(name).read_text()) for name in ('train', 'val')}

        def loader(split):
            dataset = dict(
                type='CocoDataset',
                data_root=str(self.root),
                ann_file=f'annotations/{split}.json',
                data_prefix=dict(img=f'{split}/'),
                metainfo=dict(classes=drawn.classes),
            )
            return dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset) if split == 'train' else dataset)

        head = dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6))
        self.cfg = Config(
            dict(
                default_scope='mmdet',
                model=dict(type='MaskRCNN', backbone=dict(num_classes=1000), roi_head=head),
                train_dataloader=loader('train'),
                val_dataloader=loader('val'),
                test_dataloader=loader('val'),
                val_evaluator=dict(type='CocoMetric', ann_file=str(self.file('val'))),
            )
        )
        self.train = self.cfg.train_dataloader.dataset.dataset
        self.val = self.cfg.val_dataloader.dataset

    def file(self, split):
        return self.root / 'annotations' / f'{split}.json'

    @property
    def first(self):
        return self.json['train']['annotations'][0]

    def findings(self, fast=False):
        for split, content in self.json.items():
            self.file(split).write_text(json.dumps(content))
        return check_config(self.cfg, fast)


@pytest.fixture
def spoil(drawn, tmp_path):
    return Spoil(drawn, tmp_path)


@pytest.mark.parametrize('fast', [True, False])
def test_a_clean_set_has_no_errors(spoil, fast):
    # in so few images a class may be missing, which is worth a warning and nothing else
    assert all('without a single annotation' in finding.what for finding in spoil.findings(fast))


def _rename_class(s):
    s.train.metainfo.classes = ('Fish', 'tree', 'house', 'car', 'flower', 'mug')


def _reorder_classes(s):
    s.train.metainfo.classes = ('tree', 'fish', 'house', 'car', 'flower', 'mug')


def _one_string(s):
    s.train.metainfo.classes = 'fish'


def _head(s):
    s.cfg.model.roi_head.mask_head.num_classes = 80


def _head_default(s):
    del s.cfg.model.roi_head.bbox_head['num_classes']


def _no_file(s):
    s.val.ann_file = 'annotations/vall.json'


def _image_lost(s):
    (s.root / 'train/000001.jpg').unlink()


def _image_case(s):
    (s.root / 'train/000001.jpg').rename(s.root / 'train/000001.JPG')


def _wrong_prefix(s):
    s.train.data_prefix.img = 'training/'


def _truncated(s):
    path = s.root / 'train/000001.jpg'
    path.write_bytes(path.read_bytes()[:3000])


def _swapped_size(s):
    for image in s.json['train']['images']:
        image['width'], image['height'] = image['height'] + 1, image['width']


def _outside(s):
    s.first['bbox'] = [500, 500, 20, 20]


def _over(s):
    s.first['bbox'] = [100, 100, 200, 200]


def _empty(s):
    s.first['bbox'][2] = 0


def _corners(s):
    for annotation in s.json['train']['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x, y, x + w, y + h]


def _relative(s):
    for annotation in s.json['train']['annotations']:
        annotation['bbox'] = [side / 256 for side in annotation['bbox']]


def _boxless(s):
    del s.first['bbox']


def _text_boxes(s):
    s.first['bbox'] = ['a', 1, 2, 3]


def _maskless(s):
    for annotation in s.json['train']['annotations']:
        del annotation['segmentation']


def _two_corners(s):
    s.first['segmentation'] = [[1, 1, 5, 5]]


def _flat_polygon(s):
    s.first['segmentation'] = [[10, 10, 10, 10, 10, 10]]


def _run_lengths(s):
    s.first['segmentation']['size'] = [10, 10]


def _evaluator(s):
    s.cfg.val_evaluator.ann_file = str(s.file('train'))


def _overlap(s):
    s.val.ann_file, s.val.data_prefix.img = 'annotations/train.json', 'train/'
    s.cfg.val_evaluator.ann_file = str(s.file('train'))


def _unknown_category(s):
    s.first['category_id'] = 99


def _unknown_image(s):
    s.first['image_id'] = 99


def _repeated_id(s):
    s.json['train']['annotations'][1]['id'] = s.first['id']


def _no_area(s):
    del s.first['area']


def _no_crowd(s):
    del s.json['val']['annotations'][0]['iscrowd']


def _text_entries(s):
    s.json['train']['images'] = ['a.jpg']


def _text_polygon(s):
    s.first['segmentation'] = [['a'] * 6]


def _list(s):
    s.json['train'] = [1, 2]


CASES = [
    (_rename_class, 'error', "'Fish' is 'fish' there", '--classes fish,tree,house,car,flower,mug'),
    (
        _reorder_classes,
        'error',
        'same names in another order',
        "classes=('fish', 'tree', 'house', 'car', 'flower', 'mug')",
    ),
    (_one_string, 'error', "is the string 'fish'", "classes=('fish',)"),
    (_head, 'error', 'the head expects 80 classes, the train set names 6', 'model.roi_head.mask_head.num_classes=6'),
    (_head_default, 'error', 'the head expects 80 classes', 'model.roi_head.bbox_head.num_classes=6'),
    (_no_file, 'error', 'no such file', 'val_dataloader.dataset.ann_file='),
    (_image_lost, 'error', '1 of 5 images missing', 'add the files'),
    (_image_case, 'error', '1 of 5 images missing', 'mind upper and lower case: 000001.jpg'),
    (_wrong_prefix, 'error', '5 of 5 images missing', "train_dataloader.dataset.dataset.data_prefix.img='"),
    (_truncated, 'error', 'unreadable images', 'replace'),
    (_swapped_size, 'error', "sizes differ from the file's", 'EXIF'),
    (_outside, 'error', '1 boxes outside their image: ids 1', 'correct or remove'),
    (_over, 'warning', '1 boxes that reach over', 'clip'),
    (_empty, 'warning', '1 boxes narrower or lower than one pixel', 'remove'),
    (_corners, 'error', 'look like [x1, y1, x2, y2]', '[x, y, width, height]'),
    (_relative, 'error', 'at most 1', 'write pixels'),
    (_boxless, 'error', 'annotations without a box', 'add the boxes'),
    (_text_boxes, 'error', 'not numbers', 'without quotes'),
    (_maskless, 'error', 'no mask, but the model has a mask head', 'configs/detection/retinanet_'),
    (_two_corners, 'error', 'fewer than three corners', 'draw these masks again'),
    (_flat_polygon, 'error', 'masks without area: 1 annotations, ids 1', 'draw these masks again'),
    (_run_lengths, 'error', 'run lengths of another size', 'draw these masks again'),
    (_evaluator, 'error', 'but the val images come from', "val_evaluator.ann_file='"),
    (_overlap, 'warning', '5 of 5 val images are training images', 'val_dataloader.dataset.ann_file'),
    (_unknown_category, 'error', 'category_id 99', 'correct category_id'),
    (_unknown_image, 'error', 'images that the file lacks: ids 1', 'remove'),
    (_repeated_id, 'error', 'annotations with missing or repeated ids', '1, 2, 3'),
    (_no_area, 'error', "annotations without 'area'", "add 'area'"),
    (_no_crowd, 'error', "annotations without 'iscrowd'", "add 'iscrowd': 0"),
    (_text_entries, 'error', 'not objects in the list images', 'export'),
    (_text_polygon, 'error', 'masks without area: 1 annotations, ids 1', 'draw these masks again'),
    (_list, 'error', 'not an instance file of COCO', 'images, annotations, categories'),
]


@pytest.mark.parametrize(('damage', 'severity', 'what', 'mend'), CASES, ids=[case[0].__name__ for case in CASES])
def test_each_fault_is_named_with_its_remedy(spoil, damage, severity, what, mend):
    damage(spoil)
    findings = spoil.findings()
    hits = [f for f in findings if f.severity == severity and what in f.what and mend in f.mend]
    assert len(hits) >= 1, findings


def test_fast_reads_no_more_than_a_handful_of_images(spoil, monkeypatch):
    from mmplugin.data import check_coco
    from mmplugin.data import findings as finding

    opened, true_open = [], check_coco._open_image
    monkeypatch.setattr(check_coco, 'sample', lambda items, count=2: finding.sample(items, min(count, 2)))
    monkeypatch.setattr(check_coco, '_open_image', lambda path: opened.append(path) or true_open(path))
    spoil.findings(fast=True)
    assert len(opened) == 4  # two of each split


def test_a_config_without_data_is_not_called_clean():
    with pytest.raises(UserError, match=r'names no data: none of train_dataloader.* name a config for training'):
        check_config(Config(dict(model=dict(type='MaskRCNN'))))


def test_a_stock_config_of_mmdet_is_understood(tmp_path):
    from mmengine.hub import get_config

    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    cfg.train_dataloader.dataset.data_root = cfg.val_dataloader.dataset.data_root = str(tmp_path)
    texts = [finding.what for finding in check_config(cfg, fast=True)]
    assert f'no such file: {tmp_path}/annotations/instances_train2017.json' in texts
    assert not any('head expects' in text for text in texts)


def test_same_findings_for_boxes_of_a_slow_reference(spoil):
    """Random boxes, judged one by one."""
    rng = np.random.default_rng(0)
    sizes = {image['id']: (image['width'], image['height']) for image in spoil.json['train']['images']}
    template, annotations, outside = spoil.first, [], 0
    for number in range(1, 201):
        width, height = sizes[1]
        box = rng.integers(-60, 260, 2).tolist() + rng.integers(5, 60, 2).tolist()
        x, y, w, h = box
        outside += x >= width or y >= height or x + w <= 0 or y + h <= 0
        annotations.append({**copy.deepcopy(template), 'id': number, 'image_id': 1, 'bbox': box})
    spoil.json['train']['annotations'] = annotations
    assert any(finding.what.startswith(f'{outside} boxes outside') for finding in spoil.findings())


def test_tool_ends_with_2_for_an_unknown_config(capsys):
    assert cli.main(['check-data', 'no_such_config']) == 2
    assert capsys.readouterr().err.startswith("mmplugin check-data: There is no config 'no_such_config'")


def test_the_table_cuts_nothing_on_a_narrow_terminal():
    out = io.StringIO()
    finding = Finding('error', 'what [is] wrong', 'train_dataloader.' + 8 * 'dataset.', 'a_line_to_paste=' + 50 * 'x')
    show([finding], Console(file=out, width=60))
    shown = ''.join(re.sub(r'[│\s]', '', line.replace('│ error │', '')) for line in out.getvalue().splitlines())
    for text in (finding.what, finding.where, finding.mend):
        assert text.replace(' ', '') in shown
