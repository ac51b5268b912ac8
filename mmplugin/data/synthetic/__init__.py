"""The built-in sets of ``--mini``, written as files: COCO JSON with JPEG, and ADE20K's folders with PNG labels.

The name of a set's folder ends in a digest of its parameters and of the generator's source: a changed generator draws
into a new folder, and nothing is deleted or overwritten. A set is drawn in a temporary folder that is renamed when
complete, so several processes (the ranks of torchrun) may draw at the same time: the first to finish provides the set.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import print_log

from mmplugin.palette import palette

from .scene import BACKGROUND_NAMES, NO_CLASS, OBJECT_NAMES, Scene, draw_crop, draw_scene

TRAIN_IMAGES, VAL_IMAGES = 560, 100
_DETECTION, _SEGMENTATION, _CROPS = 1, 2, 3
TRAIN_OBJECTS, VAL_OBJECTS = 2400, 300


@dataclass(frozen=True)
class MiniSet:
    """A built-in set on disk."""

    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    counts: dict[str, int]  # images per split


def _random(*path: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(path))


def _scenes(task: int, split: int, count: int) -> Iterator[tuple[str, Scene]]:
    for index in range(count):
        rng = _random(task, split, index)
        yield f'{index:06d}', draw_scene(rng, only_landscapes=task == _SEGMENTATION)


def _write_image(path: Path, pixels: np.ndarray) -> None:
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    ok, code = cv2.imencode(path.suffix, bgr, [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == '.jpg' else [])
    if not ok:
        raise OSError(f'OpenCV could not encode {path.name}')
    path.write_bytes(code.tobytes())


def _ensure(root: Path, name: str, counts: dict[str, int], write: Callable[[Path, dict[str, int]], None]) -> Path:
    digest = sha256(json.dumps([name, counts], sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob('*.py')):  # another version draws another set
        digest.update(source.read_bytes())
    target = root / f'{name}-{digest.hexdigest()[:10]}'
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    print_log(f'Drawing the built-in set of {sum(counts.values())} images into {target}', 'current')
    draft = Path(tempfile.mkdtemp(prefix=f'.{name}-', dir=root))
    try:
        write(draft, counts)
        draft.chmod(0o755)  # mkdtemp creates folders that only their owner can read
        os.rename(draft, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same set
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write_coco(root: Path, counts: dict[str, int]) -> None:
    from pycocotools import mask as rle  # needed only for drawing

    (root / 'annotations').mkdir()
    for number, (split, count) in enumerate(counts.items()):
        (root / split).mkdir()
        images: list[dict] = []
        annotations: list[dict] = []
        for name, drawn in _scenes(_DETECTION, number, count):
            _write_image(root / split / f'{name}.jpg', drawn.image)
            height, width = drawn.image.shape[:2]
            images.append({'id': len(images) + 1, 'file_name': f'{name}.jpg', 'height': height, 'width': width})
            for mask, label in zip(drawn.masks, drawn.labels, strict=True):
                annotation: dict = {'id': len(annotations) + 1, 'image_id': len(images), 'category_id': label + 1}
                coded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotation['bbox'] = [int(side) for side in rle.toBbox(coded)]
                annotation['area'], annotation['iscrowd'] = int(mask.sum()), 0
                annotation['segmentation'] = {'size': [height, width], 'counts': coded['counts'].decode('ascii')}
                annotations.append(annotation)
        categories = [{'id': index + 1, 'name': name} for index, name in enumerate(OBJECT_NAMES)]
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(content), encoding='utf-8')


def _write_ade(root: Path, counts: dict[str, int]) -> None:
    for number, (split, count) in enumerate(counts.items()):
        image_dir, label_dir = root / 'images' / split, root / 'annotations' / split
        image_dir.mkdir(parents=True)
        label_dir.mkdir(parents=True)
        for name, drawn in _scenes(_SEGMENTATION, number, count):
            _write_image(image_dir / f'{name}.jpg', drawn.image)
            # as in ADE20K: 0 is "other", 1 is the first class
            stored = np.where(drawn.semantic == NO_CLASS, 0, drawn.semantic + 1).astype(np.uint8)
            _write_image(label_dir / f'{name}.png', stored)


def ensure_mini_coco(root: Path | str, train: int = TRAIN_IMAGES, val: int = VAL_IMAGES) -> MiniSet:
    """Return the detection set under ``root``; draw it if it does not exist.

    Its files are ``train/*.jpg``, ``val/*.jpg`` and ``annotations/{train,val}.json``.
    """
    counts = {'train': train, 'val': val}
    folder = _ensure(Path(root), 'mini_coco', counts, _write_coco)
    return MiniSet(folder, OBJECT_NAMES, tuple(palette(len(OBJECT_NAMES))), counts)


def ensure_mini_ade(root: Path | str, train: int = TRAIN_IMAGES, val: int = VAL_IMAGES) -> MiniSet:
    """Return the segmentation set under ``root``; draw it if it does not exist.

    Its files are ``{images,annotations}/{training,validation}/*``, for ``reduce_zero_label=True``, as with ADE20K.
    """
    counts = {'training': train, 'validation': val}
    folder = _ensure(Path(root), 'mini_ade', counts, _write_ade)
    classes = BACKGROUND_NAMES + OBJECT_NAMES
    return MiniSet(folder, classes, tuple(palette(len(classes))), counts)


def _write_objects(root: Path, counts: dict[str, int]) -> None:
    start = 0
    for split, count in counts.items():
        for name in OBJECT_NAMES:
            (root / split / name).mkdir(parents=True)
        for index in range(start, start + count):
            pixels, label = draw_crop(_random(_CROPS, index))
            _write_image(root / split / OBJECT_NAMES[label] / f'{index:06d}.jpg', pixels)
        start += count


def ensure_mini_objects(root: Path | str, train: int = TRAIN_OBJECTS, val: int = VAL_OBJECTS) -> MiniSet:
    """Return the set of single objects under ``root``, for classification; draw it if it does not exist.

    Its files are ``{train,val}/CLASS/*.jpg``.
    """
    counts = {'train': train, 'val': val}
    folder = _ensure(Path(root), 'mini_objects', counts, _write_objects)
    return MiniSet(folder, OBJECT_NAMES, tuple(palette(len(OBJECT_NAMES))), counts)


def mini_crops(count: int, size: int = 64, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of single objects, for a short pretraining.

    Args:
        count: Number of crops.
        size: Side of a crop in pixels.
        start: Index of the first crop; the crop of an index is the same in every call.

    Returns:
        Images (count, size, size, 3), uint8 RGB, and labels (count,).
    """
    drawn = [draw_crop(_random(_CROPS, index), size) for index in range(start, start + count)]
    return np.stack([image for image, _ in drawn]), np.array([label for _, label in drawn])
