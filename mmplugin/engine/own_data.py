"""``--data-root D --classes a,b,c``: any config on a user's own data, heads and evaluators included."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from PIL import Image

from mmplugin.config_edits import is_segmentation, set_classes
from mmplugin.data.splits import sample
from mmplugin.errors import UserError
from mmplugin.palette import palette

TRAIN, VAL = ('train', 'training', 'train2017'), ('val', 'valid', 'validation', 'val2017')
ANNOTATIONS = ('annotations/{0}.json', 'annotations/instances_{0}.json', '{0}/_annotations.coco.json', '{0}.json')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
IMAGES = ('{0}', 'images/{0}', 'images', '.')
MASKS_TO_LOOK_AT = 20
IGNORED = 255


def apply(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    if not root.is_dir():
        raise UserError(f'--data-root {root} is no folder; name the one that holds images and annotations')
    classes = [name.strip() for name in classes] if classes else None
    (_segmentation if is_segmentation(cfg) else _detection)(cfg, root, classes)


def _first(root: Path, patterns: Iterable[str], words: Sequence[str], what: str, folder: bool) -> str:
    tried = [pattern.format(word) for pattern in patterns for word in words]
    for path in dict.fromkeys(tried):
        if (root / path).is_dir() if folder else (root / path).is_file():
            return path
    raise UserError(f'{root} has no {what}: looked for {", ".join(tried)}. Rename yours to one of these')


def _categories(path: Path) -> list[str]:
    try:
        return [category['name'] for category in json.loads(path.read_text(encoding='utf-8'))['categories']]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is no COCO file: {error!r}. It needs images, annotations and categories') from error


def _in_file_order(path: Path, classes: Sequence[str] | None) -> list[str]:
    """The classes, or all there are, in the file's order: mmdet numbers labels by it, not by the names' order."""
    known = _categories(path)
    strange = [name for name in classes or () if name not in known]
    if strange:
        raise UserError(
            f'{path} has no category {", ".join(map(repr, strange))}; allowed in --classes: {", ".join(known)}'
        )
    return [name for name in known if not classes or name in classes]


def _image_folder(root: Path, annotations: str, words: Sequence[str]) -> str:
    """Where the file names of the annotations are found."""
    listed = json.loads((root / annotations).read_text(encoding='utf-8')).get('images') or []
    if not listed:
        raise UserError(f'{root / annotations} lists no images; add them, or name another file')
    name = listed[0]['file_name']
    places = [pattern.format(word) for pattern in IMAGES for word in words] + [str(Path(annotations).parent)]
    for place in dict.fromkeys(places):
        if (root / place / name).is_file():
            return '' if place == '.' else f'{place}/'
    raise UserError(f'{root / annotations} lists {name}, which is in none of {", ".join(dict.fromkeys(places))}')


def _annotations(root: Path, words: Sequence[str]) -> str:
    return _first(root, ANNOTATIONS, words, f'annotations for {words[0]}', folder=False)


def _detection(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    classes = _in_file_order(root / _annotations(root, TRAIN), classes)
    for loader, words in ((cfg.train_dataloader, TRAIN), (cfg.val_dataloader, VAL), (cfg.test_dataloader, VAL)):
        found = _annotations(root, words)
        order = _in_file_order(root / found, classes)
        if order != classes:
            raise UserError(
                f'{root / found} lists categories as {", ".join(order)}, the training file as {", ".join(classes)}; '
                'labels would carry the wrong names. Write both in the same order'
            )
        images = _image_folder(root, found, words)
        loader.dataset.update(data_root=str(root), ann_file=found, data_prefix=dict(img=images))
    for evaluators in (cfg.val_evaluator, cfg.test_evaluator):
        for evaluator in evaluators:
            if 'ann_file' in evaluator:
                evaluator['ann_file'] = str(root / cfg.val_dataloader.dataset.ann_file)
    set_classes(cfg, classes, palette(len(classes)))


def _segmentation(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    if not classes:
        raise UserError('--data-root for segmentation needs --classes: the names in the order of their labels, from 0')
    for loader, words in ((cfg.train_dataloader, TRAIN), (cfg.val_dataloader, VAL), (cfg.test_dataloader, VAL)):
        images = _first(root, ('images/{0}', '{0}/images'), words, f'images for {words[0]}', folder=True)
        labels = _first(root, ('annotations/{0}', 'labels/{0}', '{0}/labels'), words, f'labels for {words[0]}', True)
        suffixes = sorted({path.suffix for path in (root / images).iterdir() if path.suffix.lower() in SUFFIXES})
        if len(suffixes) != 1:
            raise UserError(f'{root / images} holds images named {suffixes or "otherwise"}; allowed: one of {SUFFIXES}')
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path=images, seg_map_path=labels),
            img_suffix=suffixes[0],
            seg_map_suffix='.png',
        )
    labels = cfg.train_dataloader.dataset.data_prefix.seg_map_path
    reduce = _zero_is_other(root / labels, len(classes))
    if reduce:
        print_log(
            f'{root / labels} goes up to {len(classes)} with {len(classes)} classes: 0 counts as unlabelled, 1 as '
            f'{classes[0]!r} (reduce_zero_label=True). If 0 is a class too, name it first in --classes.',
            'current',
        )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.reduce_zero_label = reduce
    set_classes(cfg, classes, palette(len(classes)))


def _zero_is_other(labels: Path, count: int) -> bool:
    """Whether the masks number ``count`` classes from 1, as ADE20K does; looks at some."""
    seen = set()
    for path in sample(sorted(labels.rglob('*.png')), MASKS_TO_LOOK_AT):
        try:
            with Image.open(path) as mask:
                pixels = np.asarray(mask)
        except (OSError, SyntaxError):  # broken PNG: the check of the data names the file
            continue
        if pixels.ndim == 2:  # others hold colours, no labels
            seen.update(np.unique(pixels).tolist())
    # With a single class nothing would be left to tell it from: there, 0 is a background that was not named.
    return count > 1 and max(seen - {IGNORED}, default=0) == count
