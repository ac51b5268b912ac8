"""``--data-root FOLDER --classes a,b``: the user's data, in common layouts."""

import copy
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmplugin.cli import main
from mmplugin.engine import own_data
from mmplugin.engine.check_data import check_config
from mmplugin.engine.config import load_config
from mmplugin.engine.data_options import DataOptions
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


def test_class_names_in_two_spellings_are_refused(tmp_path: Path):
    for split in ('train', 'val'):
        _coco(tmp_path, f'{split}.json', split, split, (CAT, DOG, {'id': 10, 'name': 'Cat'}))
    with pytest.raises(UserError, match="two spellings: 'cat' and 'Cat'"):
        load_config('retinanet_v2_s0', data_root=tmp_path)
    load_config('retinanet_v2_s0', data_root=tmp_path, classes=['cat', 'dog'])


def test_a_test_set_is_measured_by_test_and_never_trained_on(tmp_path: Path):
    for split in ('train', 'valid', 'test'):
        _coco(tmp_path, f'{split}/_annotations.coco.json', split, split)
    cfg = load_config('retinanet_v2_s0', data_root=tmp_path)
    files = [cfg[f'{split}_dataloader'].dataset.ann_file for split in ('train', 'val', 'test')]
    assert files == [f'{split}/_annotations.coco.json' for split in ('train', 'valid', 'test')]
    assert cfg.val_evaluator.ann_file.endswith('valid/_annotations.coco.json')
    assert cfg.test_evaluator[0]['ann_file'].endswith('test/_annotations.coco.json')


def _write(root: Path, folder: str, name: str, pixels: list) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(root / folder / name)


def _masks(root: Path, pixels: list, splits: Sequence[str] = ('train', 'val')) -> None:
    for split in splits:
        _write(root, f'images/{split}', 'a.png', np.zeros(np.shape(pixels)[:2]).tolist())
        _write(root, f'labels/{split}', 'a.png', pixels)


@cache
def _base() -> Config:
    return load_config('semfpn_v2_s0')


def _segmentation(root: Path, classes: str | None, **options) -> Config:
    cfg = copy.deepcopy(_base())
    own_data.apply_(cfg, root, classes.split(',') if classes else None, DataOptions(**options), root / 'work')
    return cfg


def _labels(cfg: Config) -> list[int]:
    """Return what mmseg loads for the first training image."""
    from mmseg.datasets import BaseSegDataset

    dataset = cfg.train_dataloader.dataset
    (loaded, *_) = BaseSegDataset(**_without_type(dataset), pipeline=[dict(type='mmseg.LoadAnnotations')])
    assert Path(loaded['img_path']).is_file()
    return loaded['gt_seg_map'].ravel().tolist()


def test_segmentation_folder(tmp_path: Path):
    _masks(tmp_path, [[0, 1, 1, 0]])
    cfg = _segmentation(tmp_path, 'road,rest')
    dataset = cfg.val_dataloader.dataset
    assert (dataset.type, dataset.img_suffix, dataset.reduce_zero_label) == ('BaseSegDataset', '.png', False)
    assert dataset.data_prefix == dict(img_path='images/val', seg_map_path='labels/val')
    assert cfg.model.decode_head.num_classes == 2


@pytest.mark.parametrize(
    ('pixels', 'classes', 'options', 'expected'),
    [
        ([0, 1, 2, 255], 'a,b,c', {}, [0, 1, 2, 255]),
        ([1, 2, 2, 1], 'a,b', {}, [0, 1, 1, 0]),
        ([0, 1, 2, 255], 'a,b', dict(unlabelled=('0',)), [255, 0, 1, 255]),
        ([0, 1, 2, 255], 'a,b', dict(unlabelled=('2',)), [0, 1, 255, 255]),
        ([0, 1, 2, 255], 'a,b', dict(background='rest'), [0, 1, 2, 255]),
        ([0, 1, 1, 0], 'a,b,c', dict(unlabelled=('255',)), [0, 1, 1, 0]),
        ([0, 7, 7, 3], 'a=7,b=3', dict(unlabelled=('0',)), [255, 0, 0, 1]),
        ([0, 7, 9, 3], 'a=7,b=3,a=9,c=0', {}, [2, 0, 0, 1]),
        ([0, 255, 255, 0], 'a=0,b=255', {}, [0, 1, 1, 0]),
        ([0, 1, 2, 1], 'a,void,b', dict(unlabelled=('void',)), [0, 255, 1, 255]),
    ],
)
def test_masks_are_loaded_as_they_were_understood(tmp_path: Path, pixels, classes, options, expected):
    _masks(tmp_path, [pixels])
    cfg = _segmentation(tmp_path, classes, **options)
    assert _labels(cfg) == expected
    names = cfg.train_dataloader.dataset.metainfo.classes
    assert cfg.model.decode_head.num_classes == len(names)


@pytest.mark.parametrize(
    ('pixels', 'classes'),
    [
        ([0, 1, 2, 2], 'a,b'),
        ([0, 1, 2, 255], 'a,b'),
        ([0, 1, 1, 0], 'a,b,c'),
        ([0, 7, 7, 0], 'a,b'),
        ([0, 255, 255, 0], 'a'),
        ([0, 255, 255, 0], 'a,b'),
        ([0, 1, 1, 0], 'a'),
    ],
)
def test_ambiguous_masks_stop_with_the_values_and_the_options(tmp_path: Path, pixels, classes):
    _masks(tmp_path, [pixels])
    with pytest.raises(UserError, match='not certain') as error:
        _segmentation(tmp_path, classes)
    message = str(error.value)
    for value in set(pixels):
        assert re.search(rf'^ +{value} +{pixels.count(value) / 4:.2%} +2', message, re.MULTILINE)  # two masks
    assert f'--classes {classes.split(",")[0]}=' in message


def test_street_scenes_with_the_unlabelled_value_last_are_asked_about_and_then_right(tmp_path: Path, capsys):
    """Masks of 0 to 11 where 11 is unlabelled, as in CamVid's folders."""
    names = ['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist']
    for split in ('train', 'val', 'test'):
        _write(tmp_path, split, 'a.png', [[0] * 12])
        _write(tmp_path, f'{split}annot', 'a.png', [list(range(12))])
    call = ['semfpn_v2_s0', '--data-root', str(tmp_path), '--classes', ','.join(names)]
    call += ['--work-dir', str(tmp_path / 'work')]
    assert main(['check-data', *call]) == 2
    message = capsys.readouterr().err
    assert "--unlabelled 0        1 is 'sky', ..., 11 is 'bicyclist', 0 unlabelled" in message
    assert "--unlabelled 11       0 is 'sky', ..., 10 is 'bicyclist', 11 unlabelled" in message
    assert "--background NAME     0 is 'NAME', ..., 11 is 'bicyclist'" in message
    assert main(['check-data', *call, '--unlabelled', '11']) == 0
    assert (tmp_path / 'work' / 'sheet.jpg').is_file()
    cfg = _segmentation(tmp_path, ','.join(names), unlabelled=('11',))
    assert _labels(cfg) == [*range(11), 255]
    assert cfg.test_dataloader.dataset.data_prefix.img_path == 'test'


def test_a_setting_of_the_user_wins_over_the_masks(tmp_path: Path):
    _masks(tmp_path, [[0, 1, 2]])
    keys = [f'{split}_dataloader.dataset.reduce_zero_label' for split in ('train', 'val', 'test')]
    options = dict(data_options=DataOptions(unlabelled=('0',)), work_dir=tmp_path / 'work')
    cfg = load_config(
        'semfpn_v2_s0', data_root=tmp_path, classes=['a', 'b'], cfg_options=dict.fromkeys(keys, False), **options
    )
    assert not any(cfg[f'{split}_dataloader'].dataset.reduce_zero_label for split in ('train', 'val', 'test'))


RED, BLUE, BLACK = [255, 0, 0], [0, 0, 255], [0, 0, 0]


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('label_colors.txt', '255 0 0\ta red class\n0 0 255 \tb\n0 0 0 void\n'),
        ('class_dict.csv', 'name,r,g,b\na red class,255,0,0\nb,0,0,255\nvoid,0,0,0\n'),
        ('labelmap.txt', '# label:color_rgb:parts:actions\na red class:255,0,0::\nb:0,0,255::\nvoid:0,0,0::\n'),
        ('mine.json', '{"a red class": [255, 0, 0], "b": [0, 0, 255], "void": [0, 0, 0]}'),
        ('list.json', '[{"name": "a red class", "color": [255, 0, 0]}, {"name": "b", "color": [0, 0, 255]},'
         '{"name": "void", "color": [0, 0, 0]}]'),
    ],
    ids=['CamVid', 'Kaggle', 'CVAT', 'object', 'list'],
)  # fmt: skip
def test_colors_are_named_by_a_table(tmp_path: Path, name: str, text: str):
    _masks(tmp_path, [[RED, BLUE, BLACK, BLUE]])
    (tmp_path / name).write_text(text)
    table = tmp_path / name if name.endswith('.json') else None  # the others are found
    cfg = _segmentation(tmp_path, None, label_table=table, unlabelled=('void',))
    assert _labels(cfg) == [0, 1, 255, 1]
    assert cfg.train_dataloader.dataset.metainfo.classes == ('a red class', 'b')
    cfg = _segmentation(tmp_path, 'b,a red class', label_table=table)
    assert _labels(cfg) == [1, 0, 255, 0]  # --classes gives the order; the others are unlabelled


def test_colors_without_a_name_are_listed(tmp_path: Path):
    _masks(tmp_path, [[RED, BLUE, BLACK, BLUE]])
    with pytest.raises(UserError, match=r'--label-table FILE(.|\n)*#0000ff +50.00% +2'):
        _segmentation(tmp_path, None)
    (tmp_path / 'label_colors.txt').write_text('255 0 0 a\n0 0 255 b\n')
    with pytest.raises(UserError, match=r'without a name: #000000(.|\n)*--unlabelled #000000'):
        _segmentation(tmp_path, None)
    assert _labels(_segmentation(tmp_path, None, unlabelled=('#000000',))) == [0, 1, 255, 1]


def test_gray_rgb_masks_are_numbers(tmp_path: Path):
    _masks(tmp_path, [[[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]]])
    assert _labels(_segmentation(tmp_path, 'a,b')) == [0, 1, 1, 0]


def test_masks_without_a_split_get_one_and_may_have_other_suffixes(tmp_path: Path):
    for i in range(10):
        _write(tmp_path, 'images', f'{i}.png' if i % 2 else f'{i}.jpg', [[0] * 4])
        _write(tmp_path, 'masks', f'{i}_mask.png', [[0, 1, 0, 1]])
    before = sorted(tmp_path.rglob('*'))
    cfg, again = (_segmentation(tmp_path, 'a,b') for _ in range(2))
    assert _labels(cfg) == [0, 1, 0, 1]
    assert cfg.train_dataloader.dataset == again.train_dataloader.dataset
    train, val = (
        set(Path(loader.dataset.ann_file).read_text().split()) for loader in (cfg.train_dataloader, cfg.val_dataloader)
    )
    assert (len(train), len(val), len(train | val)) == (8, 2, 10)
    assert [path for path in sorted(tmp_path.rglob('*')) if 'work' not in path.parts[-4:]] == before
    assert not [finding for finding in check_config(cfg) if finding.severity == 'error']


def test_polygons_become_masks(tmp_path: Path):
    for split in ('train', 'val'):
        _coco(tmp_path, f'annotations/{split}.json', split, split)
        path = tmp_path / f'annotations/{split}.json'
        content = json.loads(path.read_text())
        small = content['annotations'][0] | {'segmentation': [[10, 10, 20, 10, 20, 20, 10, 20]], 'area': 100}
        large = dict(small, id=2, category_id=7, segmentation=[[5, 5, 35, 5, 35, 30, 5, 30]], area=750)
        path.write_text(json.dumps(content | {'annotations': [small, large]}))
    with pytest.raises(UserError, match=r'62\.5% of all pixels are outside'):
        _segmentation(tmp_path, None)
    with pytest.raises(UserError, match='--unlabelled cow: neither 0'):
        _segmentation(tmp_path, None, unlabelled=('cow',))
    with pytest.raises(UserError, match='omit one'):
        _segmentation(tmp_path, None, unlabelled=('0',), background='rest')
    with pytest.raises(UserError, match=r'--layout labelme: .* has no LabelMe annotations'):
        _segmentation(tmp_path, None, layout='labelme')
    for options, expected in ((dict(unlabelled=('0',)), [255, 0, 1]), (dict(background='rest'), [0, 1, 2])):
        cfg = _segmentation(tmp_path, None, **options)
        labels = np.reshape(_labels(cfg), (40, 50))
        assert [labels[0, 0], labels[25, 25], labels[15, 15]] == expected  # the small one lies over the large one
        assert cfg.train_dataloader.dataset.metainfo.classes[-2:] == ('cat', 'dog')
        assert not [finding for finding in check_config(cfg) if finding.severity == 'error']


@pytest.mark.parametrize('width', [51, 10**30])
def test_no_mask_is_drawn_in_a_size_that_the_image_does_not_have(tmp_path: Path, width: int):
    for split in ('train', 'val'):
        _coco(tmp_path, f'annotations/{split}.json', split, split)
        path = tmp_path / f'annotations/{split}.json'
        path.write_text(path.read_text().replace('"width": 50', f'"width": {width}'))
    with pytest.raises(UserError, match=rf'train\.jpg has 50x40 pixels, but its annotations state {width}x40'):
        _segmentation(tmp_path, None)


def test_messages_name_what_is_missing(tmp_path: Path):
    with pytest.raises(UserError, match=r'annotations/train\.json'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path)
    for split in ('train', 'val'):
        _coco(tmp_path, f'annotations/{split}.json', split, split)
    with pytest.raises(UserError, match=r"train\.json has no category 'cow'; allowed in --classes: cat, dog"):
        load_config('maskrcnn_v2_s0', data_root=tmp_path, classes=['cow'])
    (tmp_path / 'train' / 'train.jpg').unlink()
    with pytest.raises(UserError, match=r'lists train\.jpg, which is in none of'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path)
    masks = tmp_path / 'masks'
    _masks(masks, [[0, 1]])
    with pytest.raises(UserError, match='needs --classes'):
        _segmentation(masks, None)
    with pytest.raises(UserError, match='has no images with masks'):
        _segmentation(tmp_path / 'train', 'a')
    with pytest.raises(UserError, match='--background is only for segmentation'):
        load_config('maskrcnn_v2_s0', data_root=tmp_path, data_options=DataOptions(background='a'))
