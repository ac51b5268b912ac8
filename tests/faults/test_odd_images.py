"""Images that cameras and programs write, and of extreme sizes, are trained on or named in one message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from tiny_training import tiny_config, write

from mmplugin.cli import main
from mmplugin.config_edits import dicts, is_segmentation

CONFIGS = {'detection': 'retinanet_evit_m0', 'segmentation': 'semfpn_evit_m0'}


def _rotate(path: Path) -> None:
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(path, exif=exif)


def _deep(path: Path) -> None:
    gray = np.asarray(Image.open(path).convert('L')).astype(np.uint16)
    Image.fromarray(gray * 257).save(path, 'PNG')


# Files of the usual sizes in other modes; suffixes do not change, decoders look at the content.
MODES: dict[str, Callable[[Path], object]] = {
    '16-bit': _deep,
    'gray': lambda path: Image.open(path).convert('L').save(path),
    'RGBA': lambda path: Image.open(path).convert('RGBA').save(path, 'PNG'),
    'CMYK': lambda path: Image.open(path).convert('CMYK').save(path),
    'palette': lambda path: Image.open(path).convert('P').save(path, 'PNG'),
    'EXIF rotation': _rotate,
}
SIZES = [(1, 1), (20000, 30), (30, 20000)]


class Training:
    """A tiny training on a copy of a built-in set, which may be damaged before it runs."""

    def __init__(self, kind: str, folder: Path, batch_size: int):
        self.folder, self.config = folder, tiny_config(CONFIGS[kind], folder / 'config')
        cfg = Config.fromfile(self.config)
        self.segmentation = is_segmentation(cfg)
        original = next(node.data_root for node in dicts(cfg.train_dataloader) if 'data_root' in node)
        self.root = folder / 'set'
        shutil.copytree(original, self.root)
        self.config.write_text(self.config.read_text().replace(original, str(self.root)))
        cfg = Config.fromfile(self.config)
        cfg.train_dataloader.batch_size = batch_size
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'WarmStartHook']
        write(cfg, self.config)
        self.images = sorted((self.root / ('images/training' if self.segmentation else 'train')).iterdir())

    def resize(self, path: Path, size: tuple[int, int]) -> None:
        """Replace an image by one of another size, with an annotation that covers it."""
        Image.new('RGB', size, (200, 10, 10)).save(path)
        if self.segmentation:
            (mask,) = (self.root / 'annotations/training').glob(f'{path.stem}.*')
            Image.new('L', size, 1).save(mask)
            return
        file = self.root / 'annotations/train.json'
        content = json.loads(file.read_text())
        entry = next(image for image in content['images'] if image['file_name'] == path.name)
        entry['width'], entry['height'] = size
        for annotation in content['annotations']:
            if annotation['image_id'] == entry['id']:
                annotation.update(bbox=[0, 0, *size], segmentation=[[0, 0, size[0], 0, *size]])
        file.write_text(json.dumps(content))

    def run(self) -> int:
        """Train and return the exit code."""
        return main(['train', str(self.config), '--work-dir', str(self.folder / 'work'), '--no-report', '--no-check'])


@pytest.mark.faults
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', CONFIGS)
def test_training_reads_images_of_every_mode(kind: str, mode: str, tiny_sets: None, tmp_path: Path, capsys):
    training = Training(kind, tmp_path, batch_size=4)
    for path in training.images[:4]:
        MODES[mode](path)
    if mode == 'EXIF rotation' and kind == 'segmentation':  # decoders rotate the image, but not its mask
        assert training.run() == 2
        said = capsys.readouterr().err
        assert any(path.name in said for path in training.images[:4])
    else:
        assert training.run() == 0


@pytest.mark.faults
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', CONFIGS)
def test_extreme_sizes_train_or_are_named(kind, size, tiny_sets: None, tmp_path: Path, capsys):
    training = Training(kind, tmp_path, batch_size=4)
    for path in training.images[::2]:
        training.resize(path, size)
    code = training.run()
    said = capsys.readouterr().err
    assert code == 0 or (code == 2 and any(path.name in said for path in training.images[::2])), said
    assert 'Traceback' not in said


def test_a_map_of_one_pixel_in_a_batch_of_one_image_is_a_message(tiny_sets: None, tmp_path: Path, capsys):
    training = Training('detection', tmp_path, batch_size=1)  # any image of the set has one pixel at a stride of 64
    assert training.run() == 2
    said = capsys.readouterr().err
    assert any(str(path) in said for path in training.images)
    assert 'a feature map has one pixel' in said
    assert '--batch' in said


def test_a_set_of_images_that_are_all_skipped_is_a_message(tiny_sets: None, tmp_path: Path, capsys):
    training = Training('detection', tmp_path, batch_size=1)
    for path in training.images:
        training.resize(path, (1, 1))
    assert training.run() == 2
    assert f'{training.root}/annotations/train.json: no image is left to load' in capsys.readouterr().err
