"""Detection data in the layouts that people have: boxes and classes arrive as they were written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from mmplugin.data.converted import to_coco
from mmplugin.data.layouts import find_layout
from mmplugin.data.layouts.partition import arrange, draw
from mmplugin.data.layouts.tree import Tree
from mmplugin.errors import UserError

WIDTH, HEIGHT = 60, 40
CAT, DOG = ('cat', (10, 8, 30, 24)), ('dog', (0, 0, 12, 40))  # corners x1, y1, x2, y2


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (WIDTH, HEIGHT)).save(path)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def _xml(objects, filename: str = '', extra: str = '') -> str:
    nodes = ''.join(
        f'<object><name>{escape(name)}</name><difficult>{int("hard" in extra)}</difficult><bndbox><xmin>{x1}</xmin>'
        f'<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
        for name, (x1, y1, x2, y2) in objects
    )
    return f'<annotation><filename>{filename}</filename><size><width>1</width></size>{nodes}</annotation>'


def _yolo(objects, outline: bool = False) -> str:
    lines = []
    for name, (x1, y1, x2, y2) in objects:
        box = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        corners = [(x1 / WIDTH, y1 / HEIGHT), (x2 / WIDTH, y1 / HEIGHT), (x2 / WIDTH, y2 / HEIGHT)]
        values = [v for corner in [*corners, (x1 / WIDTH, y2 / HEIGHT)] for v in corner] if outline else box
        lines.append(' '.join(map(str, [['cat', 'dog'].index(name), *values])))
    return '\n'.join(lines)


def _labelme(objects, image: str, kind: str = 'rectangle') -> str:
    shapes = []
    for name, (x1, y1, x2, y2) in objects:
        points = [[x2, y1], [x1, y2]] if kind == 'rectangle' else [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
        shapes.append({'label': name, 'points': points, 'shape_type': kind, 'group_id': None})
    return json.dumps({'version': '5', 'imagePath': image, 'imageData': None, 'shapes': shapes})


def _coco(objects, names) -> str:
    images = [{'id': i, 'file_name': name, 'width': WIDTH, 'height': HEIGHT} for i, name in enumerate(names)]
    annotations = [
        {
            'id': 9 * i + j,
            'image_id': i,
            'category_id': 3 + ['cat', 'dog'].index(name),
            'bbox': [x1, y1, x2 - x1, y2 - y1],
        }
        for i in range(len(names))
        for j, (name, (x1, y1, x2, y2)) in enumerate(objects)
    ]
    return json.dumps({
        'images': images, 'annotations': annotations, 'categories': [{'id': 3, 'name': 'cat'}, {'id': 4, 'name': 'dog'}]
    })  # fmt: skip


def voc(root: Path) -> None:
    for i in range(6):
        _image(root / f'JPEGImages/{i}.jpg')
        _image(root / f'SegmentationClass/{i}.png')
        _text(root / f'Annotations/{i}.xml', _xml([CAT, DOG]))
    for split, numbers in (
        ('train', '0 1 2'),
        ('val', '3'),
        ('trainval', '0 1 2 3'),
        ('test', '4 5'),
        ('cat_train', '5'),
    ):
        _text(root / f'ImageSets/Main/{split}.txt', '\n'.join(f'{number}  1' for number in numbers.split()))


def voc_trainval(root: Path) -> None:
    voc(root)
    for split in ('train', 'val'):
        (root / f'ImageSets/Main/{split}.txt').unlink()


def voc_flat(root: Path) -> None:
    for i in range(6):
        _image(root / f'{i}.png')
        _text(root / f'{i}.xml', _xml([CAT, DOG]))


def voc_folders(root: Path) -> None:
    for split in ('train', 'valid', 'test'):
        for i in range(2):
            _image(root / split / f'{i}.jpg')  # the same names in each folder
            _text(root / split / f'{i}.xml', _xml([CAT, DOG]))


def yolo(root: Path) -> None:
    for split in ('train', 'val', 'test'):
        for i in range(2):
            _image(root / f'images/{split}/{i}.jpg')
            _text(root / f'labels/{split}/{i}.txt', _yolo([CAT, DOG], outline=i == 1))
    _text(root / 'data.yaml', 'path: /somewhere/else\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n')


def yolo_roboflow(root: Path) -> None:
    for split in ('train', 'valid', 'test'):
        for i in range(2):
            _image(root / f'{split}/images/{i}.jpg')
            _text(root / f'{split}/labels/{i}.txt', _yolo([CAT, DOG]))
    _text(
        root / 'data.yaml',
        'train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: {0: cat, 1: dog}\n',
    )
    _text(root / 'README.roboflow.txt', 'cats and dogs')


def yolo_lists(root: Path) -> None:
    for i in range(6):
        _image(root / f'images/{i}.jpg')
        _text(root / f'labels/{i}.txt', _yolo([CAT, DOG]))
    for split, numbers in (('a', '0 1 2'), ('b', '3 4')):
        _text(root / f'{split}.txt', '\n'.join(f'./images/{number}.jpg' for number in numbers.split()))
    _text(root / 'my.yaml', 'train: a.txt\nval: [b.txt]\nnames: [cat, dog]\n')


def yolo_flat(root: Path) -> None:
    for i in range(6):
        _image(root / f'{i}.jpg')
        _text(root / f'{i}.txt', _yolo([CAT, DOG]))
    _text(root / 'classes.txt', 'cat\ndog\n')


def yolo_images_at_the_root(root: Path) -> None:
    for i in range(6):
        _image(root / f'{i}.jpg')
        _text(root / f'labels/{i}.txt', _yolo([CAT, DOG]))
    _text(root / 'classes.txt', 'cat\ndog\n')


def labelme(root: Path) -> None:
    for i in range(6):
        _image(root / f'images/{i}.jpg')
        _text(
            root / f'json/{i}.json', _labelme([CAT, DOG], f'..\\images\\{i}.jpg', 'polygon' if i % 2 else 'rectangle')
        )


def coco_one_file(root: Path) -> None:
    _text(root / 'annotations/instances_default.json', _coco([CAT, DOG], [f'{i}.jpg' for i in range(6)]))
    for i in range(6):
        _image(root / f'images/default/{i}.jpg')


def coco_train_and_test(root: Path) -> None:
    for split, count in (('train', 4), ('test', 2)):
        _text(root / f'{split}/_annotations.coco.json', _coco([CAT, DOG], [f'{i}.jpg' for i in range(count)]))
        for i in range(count):
            _image(root / f'{split}/{i}.jpg')


LAYOUTS = [
    (voc, 'voc', (3, 1, 2)),
    (voc_trainval, 'voc', (3, 1, 2)),
    (voc_flat, 'voc', (5, 1, 0)),
    (voc_folders, 'voc', (2, 2, 2)),
    (yolo, 'yolo', (2, 2, 0)),
    (yolo_roboflow, 'yolo', (2, 2, 2)),
    (yolo_lists, 'yolo', (3, 2, 0)),
    (yolo_flat, 'yolo', (5, 1, 0)),
    (yolo_images_at_the_root, 'yolo', (5, 1, 0)),
    (labelme, 'labelme', (5, 1, 0)),
    (coco_one_file, 'coco', (5, 1, 0)),
    (coco_train_and_test, 'coco', (3, 1, 2)),
]


def _convert(root: Path, classes=None, layout: str | None = None):
    tree = Tree(root, root / 'work')
    return to_coco(tree, layout or find_layout(tree) or 'none', root / 'work' / 'data', classes, 0.2)


@pytest.mark.parametrize(('write', 'layout', 'counts'), LAYOUTS, ids=[case[0].__name__ for case in LAYOUTS])
def test_boxes_and_classes_arrive_as_they_were_written(tmp_path: Path, write: Callable, layout: str, counts):
    write(tmp_path)
    assert find_layout(Tree(tmp_path)) == layout
    converted = _convert(tmp_path)
    assert converted.classes == ['cat', 'dog']
    seen: set[str] = set()
    for split, count in zip(('train', 'val', 'test'), counts, strict=True):
        if not count:
            assert split not in converted.splits
            continue
        content = json.loads((converted.folder / f'{split}.json').read_text())
        files = [image['file_name'] for image in content['images']]
        assert (converted.folder / f'{split}.txt').read_text().split() == files
        assert (len(files), seen & set(files)) == (count, set())
        seen |= set(files)
        assert all((tmp_path / name).is_file() for name in files)
        assert {(image['width'], image['height']) for image in content['images']} == {(WIDTH, HEIGHT)}
        names = {category['id']: category['name'] for category in content['categories']}
        for image in content['images']:
            found = [a for a in content['annotations'] if a['image_id'] == image['id']]
            boxes = {names[a['category_id']]: a['bbox'] for a in found}
            for name, (x1, y1, x2, y2) in (CAT, DOG):
                np.testing.assert_allclose(boxes[name], (x1, y1, x2 - x1, y2 - y1), atol=1e-6)
            for annotation in found:
                assert annotation['area'] == pytest.approx(annotation['bbox'][2] * annotation['bbox'][3])


def test_a_conversion_is_made_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch):
    voc_flat(tmp_path)
    first = _convert(tmp_path)
    (tmp_path / 'work/data/.voc-killed').mkdir()
    monkeypatch.setattr('mmplugin.data.layouts.voc.image_size', lambda path: pytest.fail('it was read again'))
    assert _convert(tmp_path) == first
    monkeypatch.undo()
    os.utime(tmp_path / '0.xml', ns=(1, 1))
    again = _convert(tmp_path)
    assert again.folder != first.folder
    assert not (tmp_path / 'work/data/.voc-killed').exists()  # left by a process that was killed
    assert [(again.folder / f).read_bytes() for f in ('train.txt', 'val.txt')] == [
        (first.folder / f).read_bytes() for f in ('train.txt', 'val.txt')
    ]


def test_a_drawn_split_hardly_changes_when_images_are_added():
    names = [f'{i}.jpg' for i in range(100)]
    drawn = draw(names)
    assert drawn == draw(names[::-1])
    assert len(drawn) == 20
    assert len(draw([*names, *(f'new/{i}.jpg' for i in range(10))]) - drawn) < 10
    splits, summary = arrange(names, lambda name: 'test' if name < '3' else '', lambda name: name)
    assert min(splits['train'] + splits['val']) >= '3'
    assert 'seed 0' in summary


def test_chosen_classes_are_numbered_in_their_order(tmp_path: Path):
    voc_flat(tmp_path)
    converted = _convert(tmp_path, ['dog'])
    content = json.loads((converted.folder / 'train.json').read_text())
    assert {annotation['category_id'] for annotation in content['annotations']} == {1}
    with pytest.raises(UserError, match=r"no class 'cow'; allowed: cat, dog"):
        _convert(tmp_path, ['dog', 'cow'])


def test_difficult_objects_are_ignored_and_rotated_images_are_upright(tmp_path: Path):
    voc_flat(tmp_path)
    _text(tmp_path / '0.xml', _xml([CAT], extra='hard'))
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / '0.png', exif=exif)
    converted = _convert(tmp_path)
    contents = [json.loads((converted.folder / f'{split}.json').read_text()) for split in ('train', 'val')]
    images = {image['file_name']: (content, image) for content in contents for image in content['images']}
    content, image = images['0.png']
    assert (image['width'], image['height']) == (HEIGHT, WIDTH)
    assert [a['iscrowd'] for a in content['annotations'] if a['image_id'] == image['id']] == [1]


def test_labelme_circles_and_groups(tmp_path: Path):
    labelme(tmp_path)
    square = [[0, 0], [10, 0], [10, 10], [0, 10]]
    shapes = [
        {'label': 'cat', 'shape_type': 'circle', 'points': [[30, 20], [30, 30]]},
        {'label': 'dog', 'shape_type': 'polygon', 'points': square, 'group_id': 1},
        {'label': 'dog', 'shape_type': 'polygon', 'points': [[x + 20, y] for x, y in square], 'group_id': 1},
        {'label': 'dog', 'shape_type': 'point', 'points': [[1, 1]]},
    ]
    for i in range(6):
        content = {'imagePath': f'../images/{i}.jpg', 'shapes': shapes}
        _text(tmp_path / f'json/{i}.json', json.dumps(content))
    converted = _convert(tmp_path)
    assert converted.warnings == ['shapes that are not rectangles, polygons or circles, which are skipped: 6 point']
    cat, dog = json.loads((converted.folder / 'val.json').read_text())['annotations']
    np.testing.assert_allclose(cat['bbox'], [20, 10, 20, 20])
    assert cat['area'] == pytest.approx(np.pi * 100, rel=0.01)
    assert (dog['bbox'], dog['area'], len(dog['segmentation'])) == ([0, 0, 30, 10], 200, 2)


BOMB = (
    '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>'
)
# Each name stands for the one before it ten times.
ALIASES = 'a0: &a0 [x]\n' + ''.join(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]\n' for i in range(1, 10))


def _spoil(path: str, text: str | None) -> Callable[[Path], None]:
    return lambda root: _text(root / path, text) if text is not None else (root / path).unlink()


INVALID = [
    (voc_flat, _spoil('0.xml', '<annotation><object>'), r'0\.xml is not valid XML'),
    (voc_flat, _spoil('0.xml', BOMB), r'0\.xml is not valid XML \(it has a DOCTYPE'),
    (voc_flat, _spoil('0.xml', _xml([('cat', (30, 8, 10, 24))])), r"0\.xml: 'cat' has a box from \(30, 8\)"),
    (voc_flat, _spoil('0.xml', _xml([('cat', ('nan', 8, 10, 24))])), r'0\.xml: nan is not a finite number'),
    (voc_flat, _spoil('0.xml', _xml([('', (1, 8, 10, 24))])), r'0\.xml: an object has no name'),
    (voc_flat, _spoil('0.png', 'text'), r'0\.png is not a readable image'),
    (voc_flat, _spoil('0.png', None), r'annotation files without an image \(1\): 0\.xml'),
    (voc_flat, _spoil('0.xml', _xml([('Cat ', (1, 8, 10, 24))])), r"two spellings: .*'Cat' \(1 objects\)"),
    (voc_flat, lambda root: yolo(root), r'several layouts \(Pascal VOC: 6.*YOLO: 6.*--layout voc or --layout yolo'),
    (voc_flat, lambda root: [_text(path, _xml([])) for path in root.glob('*.xml')], r'Pascal VOC, but no object'),
    (yolo, _spoil('labels/val/0.txt', '0 0.5 0.5 0.1'), r'labels/val/0\.txt, line 1: 4 numbers; expected'),
    (yolo, _spoil('labels/val/0.txt', '0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1'), r'line 2: class 2, but the 2 names'),
    (yolo, _spoil('labels/val/0.txt', '0 30 20 10 10'), r'line 1: coordinate 30; divide x by the width'),
    (yolo, _spoil('labels/val/0.txt', '0 0.5 0.5 inf 0.1'), r'line 1: inf is not a finite number'),
    (yolo, _spoil('images/val/0.jpg', None), r'without an image \(1\): labels/val/0\.txt'),
    (yolo, _spoil('data.yaml', 'names: [cat, Cat]'), "two spellings: 'cat' .*and 'Cat'"),
    (yolo, _spoil('data.yaml', 'names: {1: cat, 2: dog}'), 'not numbered 0 to 1'),
    (yolo, _spoil('data.yaml', 'names: !!python/object/apply:os.system [ls]'), r'data\.yaml is not valid YAML'),
    (yolo, _spoil('data.yaml', ALIASES + 'names: *a9'), r'data\.yaml: `names` is neither a list nor numbered names'),
    (yolo, _spoil('data.yaml', 'a: &a {b: c}\nd: {<<: [*a, *a]}'), 'not valid YAML .it has a merge key'),
    (yolo, _spoil('data.yaml', None), 'no class names: add data.yaml'),
    (yolo, _spoil('images/val/0.png', ''), r'labels/val/0\.txt may belong to images/val/0.jpg or to images/val/0.png'),
    (labelme, _spoil('json/0.json', '{"shapes": ['), r'json/0\.json is not valid JSON'),
    (labelme, _spoil('json/0.json', '{"imagePath": "a.jpg", "shapes": [], "shapes": []}'),
     r"0\.json is not valid JSON \(keys that occur twice in an object.*: 'shapes'"),
    (labelme, _spoil('json/0.json', '[' * 100_000), r'json/0\.json is not valid JSON'),
    (labelme, _spoil('json/0.json', _labelme([('cat', (1, 2, 'a', 3))], '../images/0.jpg')), r'0\.json: a shape is'),
    (labelme, _spoil('json/0.json', _labelme([CAT], '../../../etc/passwd')), r'without an image \(1\): json/0\.json'),
    (coco_one_file, _spoil('images/default/0.jpg', None), r'lists 0\.jpg, which is in none of'),
    (coco_train_and_test, _spoil('train/_annotations.coco.json', '{"images": [{"file_name": {}}], "categories": []}'),
     'is not a valid COCO file'),
    (coco_one_file, _spoil('more.json', _coco([], [])), r'several annotation files, and their names do not say'),
    (coco_one_file, _spoil('annotations/instances_default.json', '{"images": 1, "annotations": [], "categories": []}'),
     r'instances_default\.json is not a valid COCO file'),
    (coco_one_file,
     _spoil('annotations/instances_default.json', '{"images": 1, "images": [], "annotations": 1, "categories": 1}'),
     r"instances_default\.json is not a valid COCO file: .*keys that occur twice in an object.*: 'images'"),
]  # fmt: skip


@pytest.mark.parametrize(('write', 'spoil', 'message'), INVALID, ids=range(len(INVALID)))
def test_invalid_data_is_one_message_that_names_the_file(
    tmp_path: Path, write: Callable, spoil: Callable, message: str
):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        _convert(tmp_path)


def test_images_without_annotation_and_boxes_without_area_are_warnings(tmp_path: Path):
    voc_flat(tmp_path)
    (tmp_path / '0.xml').unlink()
    _text(tmp_path / '1.xml', _xml([CAT, ('dog', (5, 5, 5, 9))]))
    assert _convert(tmp_path).warnings == [
        'images without an annotation file, which are not used (1): 0.png',
        'boxes without area, which are skipped (1): in 1.xml',
    ]
    other = tmp_path / 'other'
    yolo(other)
    (other / 'labels/val/0.txt').unlink()
    converted = _convert(other)
    assert converted.warnings == ['images without a label file, read as images without objects: images/val/0.jpg']
    assert len(json.loads((converted.folder / 'val.json').read_text())['images']) == 2


def test_results_below_the_data_are_not_read(tmp_path: Path):
    voc_flat(tmp_path)
    before = Tree(tmp_path, tmp_path / 'results').fingerprint()
    for folder in ('results', 'work_dirs/x', '.hidden'):
        _image(tmp_path / folder / 'a.png')
    (tmp_path / 'loop').symlink_to(tmp_path)
    assert Tree(tmp_path, tmp_path / 'results').fingerprint() == before
