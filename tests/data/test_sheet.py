"""The sheet of ``check-data``: boxes, masks and names are drawn where training sees them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mmplugin.cli import main
from mmplugin.data.sheet import BLACK, CELL, GAP, MASK_SHARE, UNLABELLED
from mmplugin.palette import palette

SIDE = 42  # of the images: a tenth of a cell


def _check(root: Path, config: str, *arguments: str) -> np.ndarray:
    target = root / 'results' / 'sheet.png'
    call = ['check-data', config, '--data-root', str(root), '--work-dir', str(root / 'results'), '--sheet', str(target)]
    assert main([*call, *arguments]) == 0
    return np.asarray(Image.open(target).convert('RGB')).astype(int)


def _gray(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (SIDE, SIDE), (128, 128, 128)).save(path)


def _pixel(sheet: np.ndarray, x: float, y: float) -> list[int]:
    """Return the color at a place of the first image."""
    return sheet[GAP + round(y * 10), GAP + round(x * 10)].tolist()


def test_boxes_are_drawn_around_the_objects(tmp_path: Path):
    for name in ('train', 'val'):
        _gray(tmp_path / f'{name}/a.png')
        content = {
            'images': [{'id': 1, 'file_name': 'a.png', 'width': SIDE, 'height': SIDE}],
            'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
            'annotations': [
                {'id': i, 'image_id': 1, 'category_id': i, 'bbox': box, 'area': 100, 'iscrowd': 0}
                for i, box in ((1, [5, 5, 20, 10]), (2, [10, 30, 30, 10]))
            ],
        }
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    sheet = _check(tmp_path, 'retinanet_v2_s0', '--cfg-options', 'train_dataloader.dataset.filter_cfg.min_size=0')
    assert sheet.shape[1] == 3 * (CELL + GAP) + GAP
    cat, dog = map(list, palette(2))
    assert _pixel(sheet, 25, 10) == _pixel(sheet, 15, 15) == cat
    assert _pixel(sheet, 10, 35) == _pixel(sheet, 40, 35) == dog
    assert _pixel(sheet, 15, 10) == _pixel(sheet, 30, 25) == [128, 128, 128]


def test_masks_are_drawn_in_the_color_of_their_class(tmp_path: Path):
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[:, 14:28], mask[:, 28:] = 1, 2
    for name in ('train', 'val'):
        _gray(tmp_path / f'images/{name}/a.png')
        (tmp_path / f'masks/{name}').mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / f'masks/{name}/a.png')
    for unlabelled, order in (('0', [2, 0, 1]), ('2', [0, 1, 2])):
        sheet = _check(tmp_path, 'semfpn_v2_s0', '--classes', 'road,roof', '--unlabelled', unlabelled)
        colors = [*palette(2), BLACK]
        for x, label in zip((7, 21, 35), order, strict=True):
            expected = (1 - MASK_SHARE) * 128 + MASK_SHARE * np.array(colors[label])
            np.testing.assert_allclose(_pixel(sheet, x, 2), expected, atol=1, err_msg=UNLABELLED)
