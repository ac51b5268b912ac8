"""YOLO: one text file per image with boxes or outlines relative to the image size, and class names in a YAML file."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any

import yaml

from mmplugin.data.layouts.partition import by_lists, split_of_folder
from mmplugin.data.layouts.records import (
    Object,
    Reading,
    Record,
    box_around,
    finite,
    image_size,
    read_each,
    require_images,
)
from mmplugin.data.layouts.tree import Tree, parent, stem
from mmplugin.data.splits import sample
from mmplugin.errors import UserError
from mmplugin.text import some

LABELS, IMAGES = 'labels', 'images'
NAME_LISTS = ('classes.txt', 'obj.names', 'labels.txt')  # of tools that write no YAML file
SETTINGS = ('data.yaml', 'data.yml', 'dataset.yaml', 'dataset.yml')
LARGEST_NUMBER = 1 << 64  # that a class may have as its name; Python refuses to print very long ones
# Labels reach a little over the border where a tool rounds; pixels instead of fractions are far beyond.
LARGEST_FRACTION = 1.5


class _Loader(yaml.SafeLoader):
    """A loader that refuses merges of mappings, which can repeat entries without limit."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == 'tag:yaml.org,2002:merge' for key, _ in node.value):
            raise ValueError('it has a merge key, <<, which settings do not need')


def _key(name: str) -> str:
    """Return what an image and its labels share: ``train/a`` for images/train/a.jpg and labels/train/a.txt."""
    folders = [part for part in parent(name).split('/') if part and part.lower() not in (LABELS, IMAGES)]
    return '/'.join([*folders, stem(name)])


def find(tree: Tree) -> list[str]:
    """Return the label files: text files of numbers below ``labels``, or with the name of an image; few are opened."""
    keys = {_key(name) for name in tree.images}
    files = [
        name
        for name in tree.select('.txt')
        if name.rpartition('/')[2] not in NAME_LISTS
        and (_key(name) in keys or LABELS in map(str.lower, parent(name).split('/')))
    ]
    return files if any(_is_label(tree, name) for name in sample(files)) else []


def _is_label(tree: Tree, name: str) -> bool:
    try:
        words = next((line.split() for line in tree.text(name).splitlines() if line.strip()), [])
        return len(words) >= 5 and all(finite(word) is not None for word in words)
    except (UserError, ValueError):
        return False


def read(tree: Tree, classes: list[str] | None = None) -> Reading:
    """Read all images. An image without a label file has no objects, as in the tools of this layout.

    Args:
        tree: The user's folder.
        classes: Class names in the order of their numbers, if no file has them.
    """
    labels = {_key(name): name for name in find(tree)}
    images: dict[str, str] = {}
    for name in tree.images:
        other = images.setdefault(_key(name), name)
        if other != name and _key(name) in labels:
            raise UserError(
                f'{tree.root / labels[_key(name)]} may belong to {other} or to {name}; rename or remove one of them'
            )
    missing = [name for key, name in labels.items() if key not in images and _is_label(tree, name)]
    require_images(missing, 'labels/NAME.txt belongs to images/NAME.jpg')
    settings_file, settings = _settings(tree)
    names = _names(tree, settings_file, settings) or classes
    if not names:
        raise UserError(
            f'{tree.root} has YOLO labels but no class names: add data.yaml with `names:`, or classes.txt, or give '
            '--classes in the order of the numbers'
        )
    splits = _splits(tree, settings_file, settings)
    skipped: Counter[str] = Counter()

    def record(key: str) -> Record:
        image, label = images[key], labels.get(key)
        width, height = image_size(tree.root / image)
        objects = _objects(tree, label, (width, height), names, skipped) if label else []
        return Record(image, width, height, objects, splits.get(image, '') if splits else split_of_folder(image))

    records = read_each(record, list(images), 'labels')
    warnings = []
    unlabeled = [images[key] for key in images if key not in labels]
    if unlabeled:
        warnings.append(f'images without a label file, read as images without objects: {some(unlabeled)}')
    if skipped:
        warnings.append(f'boxes without area, which are skipped ({skipped.total()}): in {some(sorted(skipped))}')
    return Reading(records, names, warnings)


def _settings(tree: Tree) -> tuple[str, dict[str, Any]]:
    """Return path and content of the YAML file with the class names."""
    found: dict[str, dict] = {}
    for name in tree.select('.yaml', '.yml'):
        try:
            content = yaml.load(tree.text(name), _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f'{tree.root / name} is not valid YAML ({error}); correct it') from error
        if isinstance(content, dict) and content.get('names'):
            if not _is_plain(content['names']):
                raise UserError(f'{tree.root / name}: `names` is neither a list nor numbered names; correct it')
            found[name] = content
    chosen = [name for name in found if name.rpartition('/')[2] in SETTINGS] or list(found)
    if len({str(found[name]['names']) for name in chosen}) > 1:
        raise UserError(f'{tree.root} has several YAML files with different `names`: {some(chosen)}; keep one')
    return (chosen[0], found[chosen[0]]) if chosen else ('', {})


def _is_plain(values: Any) -> bool:
    """Return whether a value is a list or dict of texts and small numbers. Aliases can nest lists without limit."""
    if not isinstance(values, list | dict):
        return False
    entries = [*values, *values.values()] if isinstance(values, dict) else values
    return all(isinstance(entry, str | float | date | None) or _is_small(entry) for entry in entries)


def _is_small(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < LARGEST_NUMBER


def _names(tree: Tree, settings_file: str, settings: dict[str, Any]) -> list[str]:
    """Return the class names in the order of their numbers."""
    names = settings.get('names')
    if names is None:
        lists = [name for name in tree.files if name.rpartition('/')[2] in NAME_LISTS]
        contents = {name: [line.strip() for line in tree.text(name).splitlines() if line.strip()] for name in lists}
        if len(set(map(tuple, contents.values()))) > 1:
            raise UserError(f'{tree.root} has several lists of class names that differ: {some(lists)}; keep one')
        return next(iter(contents.values()), [])
    if isinstance(names, dict):
        numbers = [int(number) for number in names if str(number).isdigit()]
        if sorted(numbers) != list(range(len(names))):
            raise UserError(
                f'{tree.root / settings_file}: `names` are not numbered 0 to {len(names) - 1}; correct them'
            )
        names = [names[number] for number in sorted(names, key=int)]
    names = [str(name).strip() for name in names]
    if len(set(names)) < len(names):
        raise UserError(f'{tree.root / settings_file}: `names` has a name twice; rename one of them')
    return names


def _splits(tree: Tree, settings_file: str, settings: dict[str, Any]) -> dict[str, str]:
    """Return the split by image that the YAML file states; empty if it states none that can be used."""
    lists = {split: _listed(tree, settings_file, settings, split) for split in ('train', 'val', 'test')}
    if not lists['train'] or (settings.get('val') and not lists['val']):
        return {}  # paths of another machine
    if set(lists['train']) == set(lists['val']):
        return {}  # the same images for both, as in demonstration sets: there is no split
    return by_lists(lists)


def _listed(tree: Tree, settings_file: str, settings: dict[str, Any], split: str) -> list[str]:
    """Return the images of a split: those in folders, or in text files with one path a line."""
    entries = settings.get(split) or []
    folder, is_list = settings.get('path'), isinstance(entries, list) and _is_plain(entries)
    images: list[str] = []
    for entry in [entries] if isinstance(entries, str) else entries if is_list else []:
        target = _resolve(tree, settings_file, folder if isinstance(folder, str) else '', str(entry))
        if target is not None and target.endswith('.txt'):
            for line in tree.text(target).splitlines():
                image = _resolve(tree, target, '', line.strip()) if line.strip() else None
                if image is not None:
                    images.append(image)
        elif target is not None:
            images += [name for name in tree.images if not target or name.startswith(f'{target}/')]
    return images


def _resolve(tree: Tree, base: str, folder: str, entry: str) -> str | None:
    """Return a path of a YAML file below the root. Such files are written for another machine more often than not."""
    entry = entry.replace('\\', '/')
    inside = [posixpath.join(parent(base), folder, entry), posixpath.join(parent(base), entry), entry]
    # Roboflow's files name folders next to them as if they were one level up.
    inside += [posixpath.join(parent(base), entry[3:])] if entry.startswith('../') else []
    if posixpath.isabs(entry):
        root = tree.root.resolve().as_posix()
        inside = [posixpath.relpath(entry, root)] if entry.startswith(f'{root}/') else []
    for path in dict.fromkeys(map(posixpath.normpath, inside)):
        if path == '.':
            return ''
        if not path.startswith('../') and (tree.root / path).exists():
            return path
    return None


def _objects(
    tree: Tree, name: str, size: tuple[int, int], classes: Sequence[str], skipped: Counter[str]
) -> list[Object]:
    objects = []
    for number, line in enumerate(tree.text(name).splitlines(), 1):
        if line.strip():
            try:
                found = _object(line.split(), size, classes)
            except ValueError as error:
                raise UserError(f'{tree.root / name}, line {number}: {error}') from error
            if found.box[2] > 0 and found.box[3] > 0:
                objects.append(found)
            else:
                skipped[name] += 1
    return objects


def _object(words: list[str], size: tuple[int, int], classes: Sequence[str]) -> Object:
    class_number, *values = map(finite, words)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f'{len(words)} numbers; expected `class x y width height` or `class x1 y1 x2 y2 x3 y3 ...`, relative to '
            'the image size'
        )
    if class_number not in range(len(classes)):
        raise ValueError(f'class {words[0]}, but the {len(classes)} names are numbered from 0: {some(classes, 8)}')
    if max(map(abs, values)) > LARGEST_FRACTION:
        raise ValueError(f'coordinate {max(values, key=abs):g}; divide x by the width and y by the height of the image')
    label, (width, height) = classes[int(class_number)], size
    if len(values) == 4:
        x, y, box_width, box_height = values
        if box_width < 0 or box_height < 0:
            raise ValueError('a box has a negative size')
        corner = ((x - box_width / 2) * width, (y - box_height / 2) * height)
        return Object(label, (*corner, box_width * width, box_height * height))
    outline = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    return Object(label, box_around([outline]), [outline])
