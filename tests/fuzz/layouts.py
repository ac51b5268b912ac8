"""Data of users: folders in each layout, in which one file is fuzzed."""

import copy
import io
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image

from mmplugin.data.sheet import draw_sheet
from mmplugin.engine.check_data import check_config
from mmplugin.engine.config import load_config
from mmplugin.engine.data_options import DataOptions
from mmplugin.engine.own_data import apply_
from mmplugin.errors import UserError
from mmplugin.findings import has_errors

from .targets import CLASSES, SIZE, Target, captured, check_text, coco_file

CONFIGS = {'detection': 'retinanet_evit_m0', 'segmentation': 'semfpn_evit_m0'}
OUTLINE = [[5, 5], [15, 5], [15, 17], [5, 17]]


def xml_file() -> bytes:
    """Return annotations of Pascal VOC."""
    box = '<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>15.5</xmax><ymax>17</ymax></bndbox>'
    objects = ''.join(
        f'<object><name>{name}</name><difficult>{i}</difficult>{box}</object>' for i, name in enumerate(CLASSES)
    )
    size = f'<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>'
    return f'<annotation><filename>0.png</filename>{size}{objects}</annotation>'.encode()


def yolo_file() -> bytes:
    """Return a box and an outline of YOLO."""
    return b'0 0.25 0.275 0.25 0.3\n1 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4\n'


def yaml_file() -> bytes:
    """Return the settings of a YOLO set."""
    names = ''.join(f'  {i}: {name}\n' for i, name in enumerate(CLASSES))
    return f'path: ../data  # root\ntrain: images\nval: [list.txt]\nnc: 2\nnames:\n{names}'.encode()


def labelme_file() -> bytes:
    """Return shapes of LabelMe."""
    shapes = [
        dict(label=CLASSES[0], shape_type='polygon', points=OUTLINE, group_id=None, flags={}),
        dict(label=CLASSES[0], shape_type='polygon', points=OUTLINE, group_id=1),
        dict(label=CLASSES[1], shape_type='circle', points=[[20, 20], [25, 20]]),
        dict(label=CLASSES[1], shape_type='point', points=[[20, 20]]),
    ]
    content = dict(version='5.0', imagePath='0.png', imageHeight=SIZE, imageWidth=SIZE, imageData=None, shapes=shapes)
    return json.dumps(content).encode()


def polygons() -> bytes:
    """Return annotations of COCO without crowds, which hide other objects in drawn masks."""
    content = json.loads(coco_file())
    for annotation in content['annotations']:
        annotation['iscrowd'] = 0
    return json.dumps(content).encode()


def color_mask() -> bytes:
    """Return a mask with the colors of the table."""
    image = Image.new('RGB', (SIZE, SIZE), (255, 128, 0))
    image.paste((0, 0, 7), (5, 5, 15, 17))
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def table_file() -> bytes:
    """Return class names with colors."""
    return f'# name r g b\n{CLASSES[0]} 255 128 0\n{CLASSES[1]},0,0,7\n'.encode()


def json_table_file() -> bytes:
    """Return class names with colors."""
    return json.dumps([dict(name=CLASSES[0], color=[255, 128, 0]), dict(name=CLASSES[1], color=[0, 0, 7])]).encode()


@cache
def config(kind: str) -> Config:
    """Return a complete config, which is not changed."""
    return load_config(CONFIGS[kind])


def write_set(names: str, content: Callable[[], bytes], fuzzed: str = '', **others: bytes) -> None:
    """Write six images with annotations whose names have the form of ``names``, except the file ``fuzzed``."""
    for i in range(6):
        path = Path('data', names.format(i))
        if path.as_posix() != f'data/{fuzzed}':
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content().replace(b'0.png', f'{i}.png'.encode()))
        image = Path(f'data/images/{i}.png')
        image.parent.mkdir(parents=True, exist_ok=True)
        pixels: np.ndarray = np.full((SIZE, SIZE, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(image)


def prepare(kind: str, **options: object) -> str:
    """Adapt a config to the folder, check the set, and load images as training does; return what happened."""
    cfg = copy.deepcopy(config(kind))
    try:
        apply_(cfg, Path('data'), None, DataOptions(**options), Path('work'))  # type: ignore[arg-type]
        findings = check_config(cfg)
        if not has_errors(findings):
            draw_sheet(cfg, Path('sheet.jpg'))
    except UserError as error:
        return str(error)
    return ' | '.join(dict.fromkeys(finding.problem for finding in findings if finding.severity == 'error'))


def read_layout(
    content: bytes, path: str, write: Callable[[], None], kinds: tuple[str, ...] = tuple(CONFIGS), **options: object
) -> str:
    """Read a set in which the file at ``path`` has this content."""
    write()
    target = Path('data', path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    options = {'background': 'rest', **options}
    problems = []
    with captured() as text:
        for handler in MMLogger.get_current_instance().handlers:
            handler.setStream(sys.stdout)
        for kind in kinds:
            chosen = options if kind == 'segmentation' else {}
            problems.append(prepare(kind, **{name: value for name, value in chosen.items() if value}))
    check_text(text())
    return ' | '.join(filter(None, problems)) or 'no findings'


def write_voc() -> None:
    """Write a set of Pascal VOC."""
    write_set('xml/{}.xml', xml_file)


def write_lists() -> None:
    """Write a set of Pascal VOC with lists."""
    write_voc()
    Path('data/ImageSets/Main').mkdir(parents=True)
    Path('data/ImageSets/Main/val.txt').write_text('4 1\n5 -1\n')


def write_yolo() -> None:
    """Write a YOLO set."""
    write_set('labels/{}.txt', yolo_file)
    Path('data/data.yaml').write_bytes(yaml_file())
    Path('data/list.txt').write_text('./images/5.png\nimages/4.png\n')


def write_coco() -> None:
    """Write a set of COCO with one file for all images."""
    write_set('images/{}.png', bytes)


def write_coco_splits() -> None:
    """Write a set of COCO with a file for each split."""
    write_coco()
    for split in ('train', 'val'):
        Path('data/annotations').mkdir(exist_ok=True)
        Path(f'data/annotations/{split}.json').write_bytes(polygons())


def write_labelme() -> None:
    """Write a set of LabelMe."""
    write_set('images/{}.json', labelme_file)


def write_masks() -> None:
    """Write a segmentation set."""
    write_set('masks/{}.png', color_mask)
    Path('data/table.txt').write_bytes(table_file())


def layout(valid: Callable[[], bytes], path: str, write: Callable[[], None], *kinds: str, **options: object) -> Target:
    """Return a target; by default, the set is read for detection and for segmentation."""
    return Target(valid, lambda content: read_layout(content, path, write, kinds or tuple(CONFIGS), **options))


MASKS = dict(background='', label_table=Path('data/table.txt'))
LAYOUT_TARGETS = {
    'layout-voc': layout(xml_file, 'xml/0.xml', write_voc, 'detection'),
    'layout-list': layout(lambda: b'0 1\n1 -1\n2\n3\n', 'ImageSets/Main/train.txt', write_lists, 'detection'),
    'layout-yolo': layout(yolo_file, 'labels/0.txt', write_yolo, 'detection'),
    'layout-yaml': layout(yaml_file, 'data.yaml', write_yolo, 'detection'),
    'layout-labelme': layout(labelme_file, 'images/0.json', write_labelme),
    'layout-coco': layout(polygons, 'instances.json', write_coco),
    'layout-split': layout(polygons, 'annotations/train.json', write_coco_splits),
    'layout-mask': layout(color_mask, 'masks/0.png', write_masks, 'segmentation', **MASKS),
    'layout-table': layout(table_file, 'table.txt', write_masks, 'segmentation', **MASKS),
    'layout-jsontable': layout(
        json_table_file, 'table.json', write_masks, 'segmentation', **{**MASKS, 'label_table': Path('data/table.json')}
    ),
}
