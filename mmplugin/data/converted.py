"""Data of the user in the form that mmdet and mmseg read, written into the work folder.

Each conversion has a folder of its own, whose name ends in a digest of the source and the settings. It appears
complete or not at all, a second call finds it, and nothing is written into the user's folder.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmplugin.data.layouts import LAYOUTS
from mmplugin.data.layouts.masks import Counts, MaskFolder, count, read_mask
from mmplugin.data.layouts.numbering import IGNORED, Numbering
from mmplugin.data.layouts.partition import arrange
from mmplugin.data.layouts.records import Object, Reading, Record, image_size, read_each, require_one_spelling
from mmplugin.data.layouts.tree import Tree
from mmplugin.data.rle import polygon_problem, rle_problem
from mmplugin.errors import UserError
from mmplugin.files import reason

try:
    import fcntl
except ImportError:  # Windows: two processes may both convert; the first to finish provides the folder
    fcntl = None  # type: ignore[assignment]

FOLDER = 'data'  # in the work folder
OUTSIDE = 0  # value of the pixels outside all polygons in converted masks; the classes follow from 1


@dataclass
class Converted:
    """A converted data set.

    Args:
        folder: Folder with ``{train,val}.txt`` (the images), and ``{train,val}.json`` or ``masks``.
        classes: Class names in the order of their labels.
        splits: Names of the splits.
        summary: The splits and how they came about, in one line.
        warnings: What was found and not used.
    """

    folder: Path
    classes: list[str]
    splits: list[str]
    summary: str
    warnings: list[str]


@cache
def _source_digest() -> str:
    """Return a digest of the code that converts: another version converts again."""
    here = Path(__file__)
    return sha256(
        b''.join(path.read_bytes() for path in sorted([here, *(here.parent / 'layouts').glob('*.py')]))
    ).hexdigest()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Let other processes of a distributed run wait instead of converting the same data; yield whether they do."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield False
        return
    with (folder / '.lock').open('a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
            return
        yield True


def write_once(folder: Path, name: str, key: Sequence, write: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict]:
    """Return ``folder/name-DIGEST`` and its description; ``write`` fills it and describes it if it does not exist.

    Args:
        folder: Parent folder.
        name: What it contains.
        key: What the content depends on, in addition to the code.
        write: Writes the files into a temporary folder.
    """
    digest = sha256(json.dumps([_source_digest(), *key], default=str).encode()).hexdigest()[:10]
    target = folder.resolve() / f'{name}-{digest}'
    try:
        with _one_at_a_time(folder) as alone:
            if not target.is_dir():
                _write(target, name, write, alone)
        return target, json.loads((target / 'about.json').read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'--work-dir: {folder} cannot be written to: {reason(error)}; choose another folder') from error


def _write(target: Path, name: str, write: Callable[[Path], dict[str, Any]], alone: bool) -> None:
    if alone:
        for stale in target.parent.glob(f'.{name}-*'):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{name}-', dir=target.parent))
    try:
        about = write(draft)
        (draft / 'about.json').write_text(json.dumps(about), encoding='utf-8')
        draft.chmod(0o755)  # mkdtemp creates folders that only their owner can read
        os.rename(draft, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same content
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def to_coco(tree: Tree, layout: str, folder: Path, classes: Sequence[str] | None, val_share: float) -> Converted:
    """Convert annotations in any layout to one COCO file per split.

    Args:
        tree: The user's folder.
        layout: One of ``LAYOUTS``.
        folder: Folder for the conversion.
        classes: Class names to use, others are skipped; default: all.
        val_share: Share of the images to draw for validation if there is no validation set.
    """

    def write(draft: Path) -> dict[str, Any]:
        reading = read(tree, layout, classes)
        names = _chosen(reading.classes, classes, layout)
        splits, summary = arrange(reading.records, lambda item: item.split, lambda item: item.image, val_share)
        for split, records in splits.items():
            _write_lines(draft / f'{split}.txt', [record.image for record in records])
            (draft / f'{split}.json').write_text(json.dumps(_coco(records, names)), encoding='utf-8')
        return asdict(Converted(Path(), names, list(splits), summary, reading.warnings)) | {'folder': ''}

    target, about = write_once(folder, layout, [tree.fingerprint(), classes, val_share], write)
    return Converted(**{**about, 'folder': target})


def read(tree: Tree, layout: str, classes: Sequence[str] | None) -> Reading:
    """Read a folder in one of ``LAYOUTS`` and check that it has objects, and one spelling for each class."""
    reading = LAYOUTS[layout].read(tree, list(classes) if classes else None)
    counts = Counter(found.label for item in reading.records for found in item.objects)
    if not counts:
        raise UserError(
            f'{tree.root} has {len(reading.records)} images in the layout {LAYOUTS[layout].title}, but no object'
        )
    require_one_spelling(dict.fromkeys(reading.classes, 0) | counts)
    return reading


def _chosen(found: Sequence[str], classes: Sequence[str] | None, layout: str) -> list[str]:
    unknown = [name for name in classes or () if name not in found]
    if unknown:
        raise UserError(
            f'--classes: the {LAYOUTS[layout].title} annotations have no class {", ".join(map(repr, unknown))}; '
            f'allowed: {", ".join(found)}'
        )
    return list(classes or found)


def _coco(records: Sequence[Record], classes: Sequence[str]) -> dict[str, list]:
    images: list[dict] = []
    annotations: list[dict] = []
    ids = {name: i + 1 for i, name in enumerate(classes)}
    for record in records:
        images.append(
            {'id': len(images) + 1, 'file_name': record.image, 'width': record.width, 'height': record.height}
        )
        for found in record.objects:
            if found.label in ids:
                annotation: dict = {'id': len(annotations) + 1, 'image_id': len(images)}
                annotation |= {
                    'category_id': ids[found.label],
                    'bbox': list(found.box),
                    'area': found.area,
                    'iscrowd': int(found.ignored),
                }
                annotations.append(annotation | ({'segmentation': found.segmentation} if found.segmentation else {}))
    return {'images': images, 'annotations': annotations, 'categories': [{'id': i, 'name': n} for n, i in ids.items()]}


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')


def count_masks(tree: Tree, folder: Path, folders: Mapping[str, MaskFolder], color: bool | None) -> Counts:
    """Count the values of all masks of all splits; the result is saved in ``folder``."""
    paths = [path for split in folders.values() for path in split.paths.values()]

    def write(draft: Path) -> dict[str, Any]:
        return vars(count([tree.root / path for path in paths], color))

    _, about = write_once(folder, 'counts', [tree.fingerprint(), sorted(paths), color], write)
    pixels, masks = (Counter({int(k): v for k, v in about.pop(name).items()}) for name in ('pixels', 'masks'))
    return Counts(pixels, masks, **about)


def renumber(
    tree: Tree, folder: Path, folders: Mapping[str, MaskFolder], numbering: Numbering, color: bool
) -> tuple[Path, dict[str, Path]]:
    """Write all masks with labels instead of their values; return their folders by split."""

    def write(draft: Path) -> dict[str, Any]:
        values = np.array(sorted(numbering.labels))
        labels = np.array([numbering.labels[value] for value in values.tolist()], dtype=np.uint8)

        def convert(item: tuple[str, str, str]) -> None:
            split, name, path = item
            pixels = read_mask(tree.root / path, color).values
            save_mask(draft / split / f'{name}.png', labels[np.searchsorted(values, pixels)])

        items = [(split, name, path) for split, found in folders.items() for name, path in found.paths.items()]
        read_each(convert, items, 'writing masks')
        return {}

    key = [tree.fingerprint(), sorted(numbering.labels.items()), sorted(folders)]
    target, _ = write_once(folder, 'masks', key, write)
    return target, {split: target / split for split in folders}


def write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Write the names of the images of each split into a text file; return the files."""

    def write(draft: Path) -> dict[str, Any]:
        for split, names in lists.items():
            _write_lines(draft / f'{split}.txt', names)
        return {}

    target, _ = write_once(folder, 'split', [dict(lists)], write)
    return {split: target / f'{split}.txt' for split in lists}


def draw_masks(
    tree: Tree, layout: str, folder: Path, classes: Sequence[str] | None, ignored: Sequence[str], val_share: float
) -> tuple[Converted, Counter]:
    """Draw one mask for each image from the outlines of its objects, smaller objects over larger ones.

    Args:
        tree: The user's folder.
        layout: One of ``LAYOUTS``.
        folder: Folder for the masks.
        classes: Class names to draw; default: all.
        ignored: Names of objects to draw as unlabelled.
        val_share: Share of the images to draw for validation if there is no validation set.

    Returns:
        The data set, and the number of pixels by value: ``OUTSIDE``, k + 1 for class k, ``IGNORED``.
    """

    def write(draft: Path) -> dict[str, Any]:
        reading = read(tree, layout, classes)
        unknown = [name for name in ignored if name not in reading.classes]
        if unknown:
            raise UserError(
                f'--unlabelled {", ".join(unknown)}: neither {OUTSIDE}, which is outside all outlines, nor one of the '
                f'classes {", ".join(reading.classes)}'
            )
        chosen = _chosen(reading.classes, classes, layout)
        names = [name for name in chosen if name not in ignored]
        if len(names) >= IGNORED:
            raise UserError(f'{len(names)} classes; masks have at most {IGNORED - 1}. Choose some with --classes')
        values = {name: i + 1 for i, name in enumerate(names)} | dict.fromkeys(ignored, IGNORED)
        splits, summary = arrange(reading.records, lambda item: item.split, lambda item: item.image, val_share)

        def draw(record: Record) -> np.ndarray:
            mask = _draw(tree, record, values)
            save_mask(draft / 'masks' / f'{record.image}.png', mask)
            return np.bincount(mask.ravel(), minlength=256)

        pixels = sum(read_each(draw, [item for items in splits.values() for item in items], 'drawing masks'))
        for split, records in splits.items():
            _write_lines(draft / f'{split}.txt', [record.image for record in records])
        about = asdict(Converted(Path(), names, list(splits), summary, reading.warnings)) | {'folder': ''}
        return about | {'pixels': pixels.tolist()}

    key = [tree.fingerprint(), classes, sorted(ignored), val_share]
    target, about = write_once(folder, f'{layout}-masks', key, write)
    pixels = Counter({value: count for value, count in enumerate(about.pop('pixels')) if count})
    return Converted(**{**about, 'folder': target}), pixels


def _draw(tree: Tree, record: Record, values: Mapping[str, int]) -> np.ndarray:
    from pycocotools import mask as rle

    size, actual = (record.width, record.height), image_size(tree.root / record.image)
    if size != actual:
        raise UserError(
            f'{tree.root / record.image} has {actual[0]}x{actual[1]} pixels, but its annotations state '
            f'{size[0]}x{size[1]}; correct their width and height, or annotate the image again'
        )
    drawn: np.ndarray = np.full(size[::-1], OUTSIDE, dtype=np.uint8)
    for found in sorted(record.objects, key=lambda item: -item.area):
        if found.label not in values:
            continue
        problem = _outline_problem(found, size)
        if problem:
            raise UserError(f'{tree.root / record.image}: {found.label!r}: {problem}')
        shape = found.segmentation
        if isinstance(shape, list) or isinstance(shape['counts'], list):  # type: ignore[index]
            shape = rle.frPyObjects(shape, *size[::-1])
        inside = rle.decode(rle.merge(shape) if isinstance(shape, list) else shape)
        drawn[inside.astype(bool)] = IGNORED if found.ignored else values[found.label]
    return drawn


def _outline_problem(found: Object, size: tuple[int, int]) -> str:
    if found.segmentation is None:
        return 'an object with only a box; segmentation needs outlines'
    if isinstance(found.segmentation, list):
        return polygon_problem(found.segmentation, size)
    return rle_problem(found.segmentation, size)


def save_mask(path: Path, labels: np.ndarray) -> None:
    """Write labels as 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)
