"""Every command of the guides runs, in their order, on data drawn in the layout that they describe."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch

from mmplugin import cli
from mmplugin.backbones import EfficientFormerV2

DOCS = Path(__file__).parents[1] / 'docs'
SHORT = {'detector': ['--epochs', '1'], 'segmentor': ['--iters', '2']}  # the last one of an option counts
FENCE = re.compile(r'^```(sh|python)\n(.*?)^```', re.MULTILINE | re.DOTALL)


def _draw_photos(root: Path, count: int = 10) -> None:
    """Draw photos with the XML files of Pascal VOC."""
    (root / 'images').mkdir(parents=True)
    (root / 'annotations').mkdir()
    for number in range(count):
        x, y, side = 10 + 7 * number, 20, 40
        image = np.full((120, 160, 3), 90, np.uint8)
        image[y : y + side, x : x + side] = (200, 30, 30)
        cv2.imwrite(str(root / f'images/{number}.jpg'), image)
        xml = ElementTree.Element('annotation')
        ElementTree.SubElement(xml, 'filename').text = f'{number}.jpg'
        item = ElementTree.SubElement(xml, 'object')
        ElementTree.SubElement(item, 'name').text = 'box' if number % 3 else 'crate'
        corners = ElementTree.SubElement(item, 'bndbox')
        for name, value in (('xmin', x), ('ymin', y), ('xmax', x + side), ('ymax', y + side)):
            ElementTree.SubElement(corners, name).text = str(value)
        ElementTree.ElementTree(xml).write(root / f'annotations/{number}.xml')


def _draw_streets(root: Path, count: int = 10) -> None:
    """Draw images with masks: 0 unlabeled, 1 road, 2 roof, 3 field."""
    random = np.random.default_rng(0)
    for folder in ('images', 'masks'):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((96, 128), np.uint8)
        mask[8:40], mask[40:70], mask[70:] = 1, 2, 3
        image = mask[..., None] * 70 + random.integers(0, 30, (96, 128, 3), np.uint8)
        cv2.imwrite(str(root / f'images/{number}.jpg'), image)
        cv2.imwrite(str(root / f'masks/{number}.png'), mask)


def _blocks(guide: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a page one by one, and its code."""
    for language, text in FENCE.findall((DOCS / guide).read_text()):
        yield from ((language, line) for line in text.splitlines()) if language == 'sh' else [(language, text)]


@pytest.mark.parametrize('kind', SHORT)
def test_the_commands_of_a_guide_run_in_their_order(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))  # slow, and only for looks
    _draw_photos(tmp_path / 'my/photos') if kind == 'detector' else _draw_streets(tmp_path / 'my/streets')
    (tmp_path / 'checkpoints').mkdir()
    torch.save(EfficientFormerV2('s0').state_dict(), 'checkpoints/v2_s0.pth')  # in place of a download
    commands = []
    for language, text in _blocks(f'first_{kind}.md'):
        if language == 'python':
            Path('rare.py').write_text(text)
            continue
        program, *arguments = shlex.split(text)
        assert program == 'mmplugin', text
        short = [*SHORT[kind], '--size', '96x128'] if arguments[0] == 'train' else []
        assert cli.main([*arguments, *short]) == 0, text
        commands.append(arguments[0])
    assert {'check-data', 'train', 'predict'} <= set(commands)
    assert any(Path('predictions').iterdir())
    assert Path('work_dirs/rare/report.html').is_file()
