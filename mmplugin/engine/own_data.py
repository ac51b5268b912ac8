"""``--data-root FOLDER --classes a,b,c``: adapt a config to the user's data, including heads and evaluators."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from PIL import Image

from mmplugin.config_edits import is_segmentation, set_annotations_, set_classes_
from mmplugin.data.splits import sample
from mmplugin.errors import UserError
from mmplugin.palette import palette

TRAIN, VAL = ('train', 'training', 'train2017'), ('val', 'valid', 'validation', 'val2017')
ANNOTATIONS = ('annotations/{0}.json', 'annotations/instances_{0}.json', '{0}/_annotations.coco.json', '{0}.json')
IMAGES = ('{0}', 'images/{0}', 'images', '.')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MASK_SAMPLE = 20  # masks to open
IGNORED = 255


def apply_(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    """Adapt a detection or segmentation config to the data in a folder."""
    if not root.is_dir():
        raise UserError(f'--data-root {root} is not a folder; name the folder with images and annotations')
    classes = [name.strip() for name in classes] if classes else None
    (_segmentation_ if is_segmentation(cfg) else _detection_)(cfg, root, classes)


def _find(root: Path, patterns: Iterable[str], split_names: Sequence[str], what: str, folder: bool) -> str:
    tried = [pattern.format(name) for pattern in patterns for name in split_names]
    for path in dict.fromkeys(tried):
        if (root / path).is_dir() if folder else (root / path).is_file():
            return path
    raise UserError(f'{root} has no {what}: tried {", ".join(tried)}. Rename yours to one of these')


def _categories(path: Path) -> list[str]:
    try:
        return [category['name'] for category in json.loads(path.read_text(encoding='utf-8'))['categories']]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not a COCO file: {error!r}. It needs images, annotations and categories') from error


def _in_file_order(path: Path, classes: Sequence[str] | None) -> list[str]:
    """Return the classes, or all categories, in the order of the file, by which mmdet numbers labels."""
    categories = _categories(path)
    unknown = [name for name in classes or () if name not in categories]
    if unknown:
        raise UserError(
            f'{path} has no category {", ".join(map(repr, unknown))}; allowed in --classes: {", ".join(categories)}'
        )
    return [name for name in categories if not classes or name in classes]


def _image_folder(root: Path, annotations: str, split_names: Sequence[str]) -> str:
    """Return the folder that the file names in the annotations are relative to."""
    images = json.loads((root / annotations).read_text(encoding='utf-8')).get('images') or []
    if not images:
        raise UserError(f'{root / annotations} lists no images; add them, or name another file')
    name = images[0]['file_name']
    tried = [pattern.format(split) for pattern in IMAGES for split in split_names] + [str(Path(annotations).parent)]
    for folder in dict.fromkeys(tried):
        if (root / folder / name).is_file():
            return '' if folder == '.' else f'{folder}/'
    raise UserError(f'{root / annotations} lists {name}, which is in none of {", ".join(dict.fromkeys(tried))}')


def _annotations(root: Path, split_names: Sequence[str]) -> str:
    return _find(root, ANNOTATIONS, split_names, f'annotations for {split_names[0]}', folder=False)


def _detection_(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    classes = _in_file_order(root / _annotations(root, TRAIN), classes)
    for loader, split_names in ((cfg.train_dataloader, TRAIN), (cfg.val_dataloader, VAL), (cfg.test_dataloader, VAL)):
        annotations = _annotations(root, split_names)
        order = _in_file_order(root / annotations, classes)
        if order != classes:
            raise UserError(
                f'{root / annotations} lists categories as {", ".join(order)}, the training file as '
                f'{", ".join(classes)}; labels would have the wrong names. Write both in the same order'
            )
        images = _image_folder(root, annotations, split_names)
        loader.dataset.update(data_root=str(root), ann_file=annotations, data_prefix=dict(img=images))
    set_annotations_(cfg, root / cfg.val_dataloader.dataset.ann_file)
    set_classes_(cfg, classes, palette(len(classes)))


def _segmentation_(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    if not classes:
        raise UserError('--data-root for segmentation needs --classes: the names in the order of their labels, from 0')
    for loader, split_names in ((cfg.train_dataloader, TRAIN), (cfg.val_dataloader, VAL), (cfg.test_dataloader, VAL)):
        name = split_names[0]
        images = _find(root, ('images/{0}', '{0}/images'), split_names, f'images for {name}', folder=True)
        masks = ('annotations/{0}', 'labels/{0}', '{0}/labels')
        labels = _find(root, masks, split_names, f'labels for {name}', folder=True)
        suffixes = sorted({path.suffix for path in (root / images).iterdir() if path.suffix.lower() in SUFFIXES})
        if len(suffixes) != 1:
            raise UserError(
                f'{root / images} has images with the suffixes {", ".join(suffixes) or "(none)"}; '
                f'exactly one is allowed, of {", ".join(SUFFIXES)}'
            )
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path=images, seg_map_path=labels),
            img_suffix=suffixes[0],
            seg_map_suffix='.png',
        )
    labels = cfg.train_dataloader.dataset.data_prefix.seg_map_path
    reduce_zero_label = _zero_is_unlabeled(root / labels, len(classes))
    if reduce_zero_label:
        print_log(
            f'{root / labels} has labels up to {len(classes)} for {len(classes)} classes: 0 is read as unlabeled, 1 as '
            f'{classes[0]!r} (reduce_zero_label=True). If 0 is a class, name it first in --classes.',
            'current',
        )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.reduce_zero_label = reduce_zero_label
    set_classes_(cfg, classes, palette(len(classes)))


def _zero_is_unlabeled(labels: Path, count: int) -> bool:
    """Return whether the masks number ``count`` classes from 1, as ADE20K does. Open a sample of them only."""
    seen = set()
    for path in sample(sorted(labels.rglob('*.png')), MASK_SAMPLE):
        try:
            with Image.open(path) as mask:
                pixels = np.asarray(mask)
        except (OSError, SyntaxError):  # a broken PNG: the data check names the file
            continue
        if pixels.ndim == 2:  # otherwise colors, not labels
            seen.update(np.unique(pixels).tolist())
    # A single class needs a second one next to it: 0 is then an unnamed background.
    return count > 1 and max(seen - {IGNORED}, default=0) == count
