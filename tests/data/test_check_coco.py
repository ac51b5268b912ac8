"""Checks of detection data: a valid set passes, and each damage is reported with its fix."""

import copy
import io
import json
import os
import re
from functools import partial

import numpy as np
import pytest
from broken_copy import BrokenCopy
from mmengine.config import Config
from PIL import Image
from rich.console import Console

from mmplugin import cli
from mmplugin.data.synthetic import ensure_mini_coco
from mmplugin.engine.check_data import check_config, show
from mmplugin.errors import UserError
from mmplugin.findings import Finding


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return ensure_mini_coco(tmp_path_factory.mktemp('mini'), train=5, val=3)


class BrokenCoco(BrokenCopy):
    def __init__(self, drawn, folder):
        super().__init__(drawn, folder)
        self.json = {name: json.loads(self.file(name).read_text()) for name in ('train', 'val')}
        self.train = self.cfg.train_dataloader.dataset.dataset
        self.val = self.cfg.val_dataloader.dataset

    def config(self, drawn):
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
        return dict(
            default_scope='mmdet',
            model=dict(type='MaskRCNN', backbone=dict(num_classes=1000), roi_head=head),
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            test_dataloader=loader('val'),
            val_evaluator=dict(type='CocoMetric', ann_file=str(self.file('val'))),
        )

    def file(self, split):
        return self.root / 'annotations' / f'{split}.json'

    @property
    def first(self):
        return self.json['train']['annotations'][0]

    def findings(self, fast=False):
        for split, content in self.json.items():
            self.file(split).write_text(json.dumps(content))
        return super().findings(fast)


@pytest.fixture
def broken(drawn, tmp_path):
    return BrokenCoco(drawn, tmp_path)


@pytest.mark.parametrize('fast', [True, False])
def test_a_valid_set_has_no_errors(broken, fast):
    # A class may be missing in so few images, which is a warning.
    assert all('classes without annotations' in finding.problem for finding in broken.findings(fast))


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


def _two_points(s):
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


def _empty_image(s):
    (s.root / 'train/000001.jpg').write_bytes(b'')


def _text_image(s):
    (s.root / 'train/000001.jpg').write_text('<html>not found</html>')


def _rotated(s):
    image = Image.open(s.root / 'train/000001.jpg')
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(s.root / 'train/000001.jpg', exif=exif)


def _no_images(s):
    s.json['train']['images'] = []


def _no_annotations(s):
    s.json['train']['annotations'] = []


def _list_name(s):
    s.json['train']['categories'][0]['name'] = ['fish']


def _no_list(s):
    s.json['train']['annotations'] = {'1': s.first}


def _narrow(s):
    s.train.filter_cfg = dict(filter_empty_gt=True, min_size=32)
    for image in s.json['train']['images']:
        image['height'] = 30


CASES = [
    (_narrow, 'error', 'a side shorter than 32 pixels, which are skipped (5 of 5)', 'filter_cfg.min_size=1'),
    (_empty_image, 'error', 'unreadable images: ', 'replace'),
    (_text_image, 'error', 'unreadable images: ', 'replace'),
    (_rotated, 'error', 'image sizes differ from those in the file: 000001.jpg is ', 'EXIF'),
    (_no_images, 'error', 'annotations of images that are not in the file', 'remove'),
    (_no_annotations, 'error', 'no annotation with a box', 'export'),
    (_list_name, 'error', "categories whose 'name' is not a number or a text: ['fish']", 'export'),
    (_no_list, 'error', 'it has no list named annotations', 'images, annotations, categories'),
    (_rename_class, 'error', "'Fish' is 'fish' in the file", '--classes fish,tree,house,car,flower,mug'),
    (
        _reorder_classes,
        'error',
        'classes in another order',
        "classes=('fish', 'tree', 'house', 'car', 'flower', 'mug')",
    ),
    (_one_string, 'error', "classes is a string, 'fish'", "classes=('fish',)"),
    (_head, 'error', 'the head has 80 classes, the train set has 6', 'model.roi_head.mask_head.num_classes=6'),
    (_head_default, 'error', 'the head has 80 classes', 'model.roi_head.bbox_head.num_classes=6'),
    (_no_file, 'error', 'no such file', 'val_dataloader.dataset.ann_file='),
    (_image_lost, 'error', 'missing images (1 of 5)', 'add the files'),
    (_image_case, 'error', 'missing images (1 of 5)', 'correct upper and lower case: 000001.jpg'),
    (_wrong_prefix, 'error', 'missing images (5 of 5)', "train_dataloader.dataset.dataset.data_prefix.img='"),
    (_truncated, 'error', 'unreadable images', 'replace'),
    (_swapped_size, 'error', 'image sizes differ from those in the file', 'EXIF'),
    (_outside, 'error', 'boxes outside their image: ids 1', 'correct or remove'),
    (_over, 'warning', 'boxes that extend beyond the image, clipped in training: ids 1', 'clip'),
    (_empty, 'warning', 'boxes smaller than one pixel, skipped in training: ids 1', 'remove'),
    (_corners, 'error', 'look like [x1, y1, x2, y2]', '[x, y, width, height]'),
    (_relative, 'error', 'at most 1', 'write pixels'),
    (_boxless, 'error', 'annotations without a box', 'add the boxes'),
    (_text_boxes, 'error', 'not numbers', 'without quotes'),
    (_maskless, 'error', 'annotations without a mask, but the model has a mask head', 'configs/detection/retinanet_'),
    (_two_points, 'error', 'fewer than three points', 'draw these masks again'),
    (_flat_polygon, 'error', 'masks without area: ids 1', 'draw these masks again'),
    (_run_lengths, 'error', 'RLE masks of another size', 'draw these masks again'),
    (_evaluator, 'error', 'but the val images come from', "val_evaluator.ann_file='"),
    (_overlap, 'warning', 'val images that are also training images (5 of 5)', 'val_dataloader.dataset.ann_file'),
    (_unknown_category, 'error', 'unknown category_id: 99', 'correct category_id'),
    (_unknown_image, 'error', 'images that are not in the file: ids 1', 'remove'),
    (_repeated_id, 'error', 'annotations with missing or repeated ids', '1, 2, 3'),
    (_no_area, 'error', "annotations without 'area'", "add 'area'"),
    (_no_crowd, 'error', "annotations without 'iscrowd'", "add 'iscrowd': 0"),
    (_text_entries, 'error', 'entries that are not JSON objects in the list images', 'export'),
    (_text_polygon, 'error', 'polygons with coordinates that are not numbers: ids 1', 'draw these masks again'),
    (_list, 'error', 'not a COCO instance file', 'images, annotations, categories'),
]


@pytest.mark.parametrize(('damage', 'severity', 'problem', 'fix'), CASES, ids=[case[0].__name__ for case in CASES])
def test_each_damage_is_reported_with_its_fix(broken, damage, severity, problem, fix):
    damage(broken)
    broken.assert_reports(severity, problem, fix)


def _ids(s, change):
    for content in s.json.values():
        for image in content['images']:
            image['id'] = change(image['id'])
        for annotation in content['annotations']:
            annotation.update(id=change(annotation['id']), image_id=change(annotation['image_id']))


def _rename_image(s):
    image = s.json['train']['images'][0]
    path = s.root / 'train' / image['file_name']
    image['file_name'] = path.rename(path.with_name('ü 新\u202e.jpg')).name


def _convert(s, mode, form):
    path = s.root / 'train/000001.jpg'
    Image.open(path).convert(mode).save(path, form)


HARMLESS = {
    'gaps': lambda s: _ids(s, lambda number: 3 * number),
    'huge': lambda s: _ids(s, lambda number: number + 10**30),
    'text': lambda s: _ids(s, lambda number: f'no. {number}'),
    'crowd': lambda s: s.first.update(iscrowd=1),
    'name': _rename_image,
    **{
        mode: partial(_convert, mode=mode, form=form)
        for mode, form in (('L', 'JPEG'), ('CMYK', 'JPEG'), ('RGBA', 'PNG'))
    },
}


@pytest.mark.parametrize('change', HARMLESS)
def test_unusual_but_valid_sets_have_no_errors(broken, change):
    HARMLESS[change](broken)
    assert [finding for finding in broken.findings() if finding.severity == 'error'] == []


def test_the_fast_check_opens_only_a_sample_of_the_images(broken, monkeypatch):
    from mmplugin.data import check_coco, splits

    opened, open_image = [], check_coco._open_image
    monkeypatch.setattr(check_coco, 'sample', lambda items, count=2: splits.sample(items, min(count, 2)))
    monkeypatch.setattr(check_coco, '_open_image', lambda path: opened.append(path) or open_image(path))
    broken.findings(fast=True)
    assert len(opened) == 4  # two of each split


def test_a_config_without_a_dataset_is_refused():
    with pytest.raises(UserError, match=r'has no dataset: .*train_dataloader.* Use a config for training'):
        check_config(Config(dict(model=dict(type='MaskRCNN'))))


def test_a_config_of_mmdet_is_checked(tmp_path):
    from mmengine.hub import get_config

    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    cfg.train_dataloader.dataset.data_root = cfg.val_dataloader.dataset.data_root = str(tmp_path)
    texts = [finding.problem for finding in check_config(cfg, fast=True)]
    assert f'no such file: {tmp_path}/annotations/instances_train2017.json' in texts
    assert not any('the head has' in text for text in texts)


def test_random_boxes_outside_the_image_are_counted_as_one_by_one(broken):
    rng = np.random.default_rng(0)
    sizes = {image['id']: (image['width'], image['height']) for image in broken.json['train']['images']}
    template, annotations, outside = broken.first, [], 0
    for number in range(1, 201):
        width, height = sizes[1]
        box = rng.integers(-60, 260, 2).tolist() + rng.integers(5, 60, 2).tolist()
        x, y, w, h = box
        outside += x >= width or y >= height or x + w <= 0 or y + h <= 0
        annotations.append({**copy.deepcopy(template), 'id': number, 'image_id': 1, 'bbox': box})
    broken.json['train']['annotations'] = annotations
    reported = [finding.problem for finding in broken.findings() if finding.problem.startswith('boxes outside')]
    assert f'({outside} in total)' in reported[0]


def test_the_command_ends_with_2_for_an_unknown_config(capsys):
    assert cli.main(['check-data', 'no_such_config']) == 2
    assert capsys.readouterr().err.startswith("mmplugin check-data: Config 'no_such_config' not found")


def test_the_table_wraps_long_lines_on_a_narrow_terminal():
    out = io.StringIO()
    finding = Finding('error', 'what [is] wrong', 'train_dataloader.' + 8 * 'dataset.', 'a_line_to_paste=' + 50 * 'x')
    show([finding], Console(file=out, width=60))
    shown = ''.join(re.sub(r'[│\s]', '', line.replace('│ error │', '')) for line in out.getvalue().splitlines())
    for text in (finding.problem, finding.where, finding.fix):
        assert text.replace(' ', '') in shown


# What crashed pycocotools, took all memory, or ended in a traceback. Training runs the fast check only.
HOSTILE = {
    'polygons with NaN or infinite coordinates': ('segmentation', [[10.0, 10.0, float('nan'), 30.0, 30.0, 10.0]]),
    'polygons far outside the image': ('segmentation', [[0.0, 0.0, 1e9, 0.0, 1e9, 1e9]]),
    'RLE masks with counts that do not sum to height . width': ('segmentation', 'runs'),
    'RLE masks with counts that cannot be decoded': ('segmentation', 'text'),
    'RLE masks of another size than the image': ('segmentation', {'size': [60000, 60000], 'counts': [3600000000]}),
    'boxes with coordinates that are not numbers': ('bbox', ['10', 10, 20, 20]),
    'boxes with coordinates beyond any image': ('bbox', [1.0, 1.0, 1e30, 10.0]),
    "annotations whose 'id' is not a number or a text": ('id', [1]),
    "annotations whose 'image_id' is not a number or a text": ('image_id', [1]),
    "annotations whose 'category_id' is not a number or a text": ('category_id', {'id': 1}),
    'polygons with coordinates that are not numbers': ('segmentation', [[1, 2, None, 4, 5, 6]]),
    'polygons with fewer than three points': ('segmentation', [[1, 2, 3, 4, 5, 6, 7]]),
    'RLE masks without a size': ('segmentation', {'counts': 'abc'}),
    'masks that are neither polygons nor RLE': ('segmentation', 7),
    'boxes outside their image': ('bbox', [-500.0, -500.0, 20.0, 20.0]),
    'boxes with NaN or infinite coordinates': ('bbox', [1.0, float('inf'), 5.0, 5.0]),
    'annotations without a box': ('bbox', [1.0, 2.0, 3.0]),
    'boxes or image sizes that are not numbers: int too large': ('bbox', [1, 1, 10**400, 5]),
    "annotations whose 'area' is not a number from 0": ('area', '100'),
    "annotations whose 'area' is not a number from 0: ids": ('area', float('nan')),
    "annotations whose 'iscrowd' is neither 0 nor 1": ('iscrowd', ['yes']),
}


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('problem', HOSTILE)
def test_hostile_annotations_are_reported_before_pycocotools_sees_them(broken, problem, fast):
    field, value = HOSTILE[problem]
    image = next(i for i in broken.json['train']['images'] if i['id'] == broken.first['image_id'])
    size = [image['height'], image['width']]
    shown = {'runs': {'size': size, 'counts': [4, -4, 4_000_000_000]}, 'text': {'size': size, 'counts': 'zzzz!!!'}}
    broken.first[field] = shown.get(value, value) if isinstance(value, str) else value
    found = [finding for finding in broken.findings(fast) if re.search(problem, finding.problem)]
    assert [finding.severity for finding in found] == ['error']


@pytest.mark.parametrize(
    ('old', 'new', 'named'),
    [
        ('"images": ', '"images": [], "images": ', "'images'"),
        ('"bbox": ', '"bbox": [1, 1, 2, 2], "bbox": ', "'bbox' of 1, 'bbox' of 2, 'bbox' of 3, ..."),
        ('"id": 1,', '"id": 1, "id": 1,', "'id' of 1"),
    ],
)
def test_a_key_that_occurs_twice_is_an_error(broken, monkeypatch, old, new, named):
    dumps = json.dumps
    monkeypatch.setattr(json, 'dumps', lambda content: dumps(content).replace(old, new))
    found = [finding for finding in broken.findings(fast=True) if 'keys that occur twice' in finding.problem]
    assert len(found) == 2
    assert all(finding.severity == 'error' and named in finding.problem for finding in found)


def test_a_byte_order_mark_is_an_error_because_pycocotools_cannot_read_it(broken, monkeypatch):
    dumps = json.dumps
    monkeypatch.setattr(json, 'dumps', lambda content: f'\ufeff{dumps(content)}')
    assert len([found for found in broken.findings(fast=True) if 'Unexpected UTF-8 BOM' in found.problem]) == 2


def test_a_set_of_crowds_or_of_tiny_boxes_is_an_error(broken):
    for annotation in broken.json['train']['annotations']:
        annotation['iscrowd'] = 1
    assert any('all annotations are crowds' in finding.problem for finding in broken.findings(fast=True))
    for annotation in broken.json['train']['annotations']:
        annotation.update(iscrowd=0, bbox=[50, 50, -10, -10])
    found = [finding for finding in broken.findings(fast=True) if 'smaller than one pixel' in finding.problem]
    assert found[0].severity == 'error'


def test_a_class_name_with_half_a_character_is_reported_and_printed(broken):
    """JSON can hold one half of a surrogate pair, which no file and no terminal can."""
    broken.json['train']['categories'][0]['name'] = 'fish\ud800'
    findings = broken.findings(fast=True)
    assert any("categories whose 'name' is not a number or a text: 'fish\\ud800'" in f.problem for f in findings)
    file = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    show([Finding('error', 'a\ud800\x1b[31m', 'b\ud800', 'c\ud800')], Console(file=file))
    file.seek(0)
    assert 'a??[31m' in file.read()


@pytest.mark.parametrize('value', [10**400, -(10**400), 1e308])
def test_a_polygon_of_any_number_is_reported(broken, value):
    broken.first['segmentation'] = [[1, 1, value, 5, 5, 5]]
    assert any('polygons far outside the image' in finding.problem for finding in broken.findings(fast=True))


def test_a_pipe_and_a_postscript_file_in_place_of_images_are_reported_and_not_read(broken):
    """Opening a pipe waits for ever, and Pillow runs Ghostscript for PostScript."""
    first, second = sorted((broken.root / 'train').iterdir())[:2]
    first.unlink()
    os.mkfifo(first)
    second.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
    (problem,) = [finding.problem for finding in broken.findings() if 'unreadable images' in finding.problem]
    assert f'{first} ({first.name} is a named pipe, not a regular file)' in problem
    assert f'{second} (cannot identify image file' in problem
