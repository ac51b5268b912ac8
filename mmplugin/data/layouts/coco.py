"""COCO: one JSON file per split, or one for all images."""

import mmap
import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmplugin.data.json_text import parse_json
from mmplugin.data.layouts.partition import SPLIT_NAMES
from mmplugin.data.layouts.records import Object, Reading, Record, box_around, finite
from mmplugin.data.layouts.tree import Tree, parent, read_text
from mmplugin.errors import UserError
from mmplugin.files import require_file
from mmplugin.text import some

ANNOTATIONS = ('annotations/{0}.json', 'annotations/instances_{0}.json', '{0}/_annotations.coco.json', '{0}.json')
IMAGES = ('{0}', 'images/{0}', 'images', '.')
KEYS = (b'"images"', b'"annotations"', b'"categories"')
LABELME_KEYS = (b'"shapes"', b'"imagePath"')
MOST_IN_A_FOLDER = 20  # more JSON files in a folder belong to another layout
LARGE = 100_000_000  # bytes; larger files are taken for COCO files without a look into them


def patterns(split: str) -> list[str]:
    """Return the paths below the root at which the annotations of a split may be."""
    return [pattern.format(word) for pattern in ANNOTATIONS for word in SPLIT_NAMES[split]]


def by_split(tree: Tree) -> dict[str, str]:
    """Return the annotation files whose names or folders name their split."""
    files = set(tree.files)
    found = {split: next((path for path in patterns(split) if path in files), '') for split in SPLIT_NAMES}
    return {split: path for split, path in found.items() if path and not _has_keys(tree.root / path, LABELME_KEYS)}


def find(tree: Tree) -> list[str]:
    """Return the annotation files."""
    known = by_split(tree)
    if known:
        return list(known.values())
    folders: dict[str, list[str]] = defaultdict(list)
    for name in tree.select('.json'):
        folders[parent(name)].append(name)
    few = [name for names in folders.values() if len(names) <= MOST_IN_A_FOLDER for name in names]
    return [name for name in few if _has_keys(tree.root / name, KEYS)]


def _has_keys(path: Path, keys: Sequence[bytes]) -> bool:
    """Return whether a JSON file has all keys; it is searched, but not parsed."""
    try:
        if require_file(path).st_size > LARGE:
            return keys == KEYS
        with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in keys)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def read(tree: Tree, classes: list[str] | None = None) -> Reading:
    """Read all images and annotations. The classes have the order of the categories in the file."""
    files = by_split(tree)
    if not files:
        found = find(tree)
        if len(found) > 1:
            raise UserError(
                f'{tree.root} has several annotation files, and their names do not say which is for training: '
                f'{some(found)}. Rename them to annotations/train.json and annotations/val.json'
            )
        files = {'': found[0]}
    records: list[Record] = []
    orders = {}
    for split, name in files.items():
        names, found_records = _read_file(tree, name, split)
        records += found_records
        orders[name] = names
    (first, order), *others = orders.items()
    for name, other in others:
        if sorted(other) != sorted(order):
            raise UserError(f'{name} has the categories {", ".join(other)}, but {first} has {", ".join(order)}')
    return Reading(records, order)


def _read_file(tree: Tree, name: str, split: str) -> tuple[list[str], list[Record]]:
    path = tree.root / name
    try:
        content = parse_json(read_text(path))
        categories = {category['id']: str(category['name']) for category in content['categories']}
        records, image_of = {}, _images(tree, name, split)
        for image in content['images']:
            size = int(image['width']), int(image['height'])
            records[image['id']] = Record(image_of(str(image['file_name'])), *size, split=split)
        for annotation in content['annotations']:
            records[annotation['image_id']].objects.append(_object(annotation, categories))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is not a valid COCO file: {error!r}. Export it again') from error
    if len(set(categories.values())) < len(content['categories']):
        raise UserError(f'{path} has categories with the same name or id; rename or merge them')
    return list(categories.values()), list(records.values())


def _object(annotation: dict[str, Any], categories: dict) -> Object:
    segmentation = annotation.get('segmentation') or None
    if isinstance(segmentation, list):
        segmentation = [[finite(value) for value in polygon] for polygon in segmentation]
    box = annotation.get('bbox')
    if box:
        x, y, width, height = map(finite, box)
    elif isinstance(segmentation, list):
        x, y, width, height = box_around(segmentation)
    else:
        raise ValueError(f'annotation {annotation.get("id")} has no bbox')
    label = categories[annotation['category_id']]
    return Object(label, (x, y, width, height), segmentation, bool(annotation.get('iscrowd')))


def _images(tree: Tree, annotations: str, split: str) -> Callable[[str], str]:
    """Return a function that finds an image by its file name: in one of the usual folders, else by a unique name."""
    images, by_name = set(tree.images), defaultdict(list)
    for image in tree.images:
        by_name[image.rpartition('/')[2]].append(image)
    words = SPLIT_NAMES.get(split, ())
    folders = [pattern.format(word) for pattern in IMAGES for word in words or ('default',)]
    folders = list(dict.fromkeys([*folders, parent(annotations)]))

    def find_image(name: str) -> str:
        name = name.replace('\\', '/')
        for folder in folders:
            path = posixpath.normpath(posixpath.join(folder, name))
            if path in images:
                return path
        same = by_name.get(name.rpartition('/')[2], [])
        if len(same) != 1:
            problem = f'fits {some(same)}' if same else f'is in none of {", ".join(folders)}'
            raise UserError(f'{tree.root / annotations} lists {name}, which {problem}')
        return same[0]

    return find_image
