"""``--data-root D --classes a,b,c``: any config on a user's own data, heads and evaluators included."""

import colorsys
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.config import Config

from mmplugin.engine.config import is_segmentation, set_classes
from mmplugin.errors import UserError

TRAIN, VAL = ('train', 'training', 'train2017'), ('val', 'valid', 'validation', 'val2017')
ANNOTATIONS = ('annotations/{0}.json', 'annotations/instances_{0}.json', '{0}/_annotations.coco.json', '{0}.json')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
IMAGES = ('{0}', 'images/{0}', 'images', '.')


def apply(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    if not root.is_dir():
        raise UserError(f'--data-root {root} is no folder; name the one that holds images and annotations')
    classes = [name.strip() for name in classes] if classes else None
    (_segmentation if is_segmentation(cfg) else _detection)(cfg, root, classes)


def palette(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ, the same for the same count."""
    hues = (colorsys.hsv_to_rgb(i * 0.618 % 1, 0.55 + 0.4 * (i % 2), 0.95) for i in range(count))
    return [tuple(round(255 * channel) for channel in rgb) for rgb in hues]


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


def _detection(cfg: Config, root: Path, classes: Sequence[str] | None) -> None:
    for loader, words in ((cfg.train_dataloader, TRAIN), (cfg.val_dataloader, VAL), (cfg.test_dataloader, VAL)):
        found = _first(root, ANNOTATIONS, words, f'annotations for {words[0]}', folder=False)
        known = _categories(root / found)
        classes = classes or known
        strange = [name for name in classes if name not in known]
        if strange:
            raise UserError(f'--classes names {", ".join(strange)}, but {root / found} knows {", ".join(known)}')
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
            reduce_zero_label=False,
        )
    set_classes(cfg, classes, palette(len(classes)))
