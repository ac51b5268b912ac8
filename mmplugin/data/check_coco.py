"""Checks of COCO-style datasets against a config."""

import gc
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import ImageOps

from mmplugin.config_edits import dicts
from mmplugin.data.json_text import parse_json
from mmplugin.files import require_file
from mmplugin.findings import ERROR, NOTE, WARNING, Finding
from mmplugin.image_files import UNREADABLE, open_image
from mmplugin.text import some

from .rle import LARGEST_COORDINATE, polygon_problem, rle_problem
from .splits import Split, check_classes, check_overlap, distinct, map_in_threads, sample, splits

LISTS = ('images', 'annotations', 'categories')
# What refers to entries, and serves as a key of a dict in mmdet and pycocotools.
KEY_FIELDS = {
    'images': ('id', 'file_name'),
    'annotations': ('id', 'image_id', 'category_id'),
    'categories': ('id', 'name'),
}
NO_MASK = 'annotations without a mask, but the model has a mask head'
NEITHER = 'masks that are neither polygons nor RLE'
TOO_SMALL = 'boxes smaller than one pixel, skipped in training'


@dataclass
class _CocoFile:
    """A COCO annotation file and the split that uses it."""

    path: Path
    split: Split
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]

    @cached_property
    def sizes(self) -> dict[Any, tuple]:
        """Size (width, height) by image id."""
        return {image.get('id'): (image.get('width'), image.get('height')) for image in self.images}

    def error(self, problem: str, fix: str) -> Finding:
        return Finding(ERROR, problem, str(self.path), fix)

    def warning(self, problem: str, fix: str) -> Finding:
        return Finding(WARNING, problem, str(self.path), fix)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    # COCO's training file is ten million objects, none of them garbage: searching them doubles the time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_garbage_collection_off()
def check_coco(cfg: Config, fast: bool) -> list[Finding]:
    """Check the datasets and evaluators of a detection config."""
    found = splits(cfg)
    findings = [finding for split in found for finding in check_classes(cfg, split)]
    with_masks = any('mask_head' in node for node in dicts(cfg.get('model')))
    contents: dict[Path, dict | Finding] = {}
    for split in distinct(found):
        if split.remote or not _reads_coco(split):
            problem = f'not checked: {split.config.get("type")} does not read local COCO files'
            findings.append(Finding(NOTE, problem, split.key, 'nothing to change'))
            continue
        path = split.path(split.config.get('ann_file'))
        if path not in contents:
            contents[path] = _read(path, split)
        content = contents[path]
        if isinstance(content, Finding):
            findings.append(content)
            continue
        file = _CocoFile(path, split, content['images'], content['annotations'], content['categories'])
        for check in (_check_categories, _check_fields, _check_references, _check_coverage, _check_boxes):
            findings += check(file)
        findings += _check_images(file, fast)
        if with_masks:
            findings += _check_masks(file, fast)
    return findings + check_overlap(found) + _check_evaluators(cfg, found)


def _reads_coco(split: Split) -> bool:
    return any(parent.__name__ == 'CocoDataset' for parent in getattr(split.dataset_class, '__mro__', ()))


def _read(path: Path, split: Split) -> dict | Finding:
    """Return the content of a COCO file, or what is wrong with it."""
    key = f'{split.key}.ann_file'
    if not path.exists():
        root = split.config.get('data_root') or 'the current folder'
        fix = f"{key}='<an existing file in {root}>', or --data-root FOLDER for your own data"
        return Finding(ERROR, f'no such file: {path}', key, fix)
    try:
        require_file(path)
        content = parse_json(path.read_text(encoding='utf-8'))  # as pycocotools reads it: without a byte order mark
    except (ValueError, OSError, RecursionError) as error:
        return Finding(ERROR, f'not readable as JSON: {error}', str(path), 'export the file again')
    missing = [name for name in LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        problem = f'not a COCO instance file: it has no list named {some(missing)}'
        return Finding(ERROR, problem, str(path), f"{key}='<a file with {some(LISTS)}>'")
    malformed = [name for name in LISTS if not all(isinstance(entry, dict) for entry in content[name])]
    if malformed:
        problem = f'entries that are not JSON objects in the list {some(malformed)}'
        return Finding(ERROR, problem, str(path), 'export the file again')
    for name, fields in KEY_FIELDS.items():
        for field in fields:
            odd = [entry[field] for entry in content[name] if not _is_key(entry.get(field, ''))]
            if odd:
                problem = f'{name} whose {field!r} is not a number or a text: {some(map(ascii, odd))}'
                return Finding(ERROR, problem, str(path), 'export the file again')
    return content


def _is_key(value: Any) -> bool:
    """Whether a value is a whole number, or a text that a file can hold. JSON can also hold halves of characters."""
    if isinstance(value, str) and not value.isascii():
        return not any('\ud800' <= character <= '\udfff' for character in value)
    return isinstance(value, int | str)


def _check_categories(file: _CocoFile) -> Iterator[Finding]:
    names, classes = [category.get('name') for category in file.categories], file.split.classes
    key = f'{file.split.key}.metainfo.classes'
    all_names = f'metainfo=dict(classes={tuple(names)}), or --classes {",".join(map(str, names))}'
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        yield file.error(f'categories with the same name: {some(repeated)}', 'rename or merge them')
    missing = [name for name in classes if name not in names]
    if missing:
        by_lower_case = {str(name).strip().casefold(): name for name in names}
        similar = {name: by_lower_case.get(name.strip().casefold()) for name in missing}
        hints = [f'{name!r} is {other!r} in the file' for name, other in similar.items() if other]
        problem = f'classes without a category of that name: {some(missing, 5)}; the categories are {some(names, 8)}'
        yield Finding(ERROR, problem + (f' ({some(hints)})' if hints else ''), key, all_names)
        return
    unused = [name for name in names if name not in classes]
    if unused:
        yield Finding(
            WARNING, f'categories that are not trained: {some(unused, 5)}', key, f'to train them: {all_names}'
        )
    order = tuple(name for name in names if name in classes)
    if order != classes and not repeated:
        # mmdet numbers labels in the order of the file and names them in the order of the config.
        problem = f'classes in another order than the categories, {some(order, 8)}: results would have the wrong names'
        yield Finding(ERROR, problem, key, f'metainfo=dict(classes={order})')


def _check_fields(file: _CocoFile) -> Iterator[Finding]:
    for name in LISTS:
        entries = getattr(file, name)
        if len({entry.get('id') for entry in entries}) < len(entries):
            yield file.error(f'{name} with missing or repeated ids', f'number the {name} 1, 2, 3, ...')
    if any(annotation.get('id') == 0 for annotation in file.annotations):
        problem = 'an annotation has id 0: pycocotools counts a match with it as a miss'
        yield file.warning(problem, 'number the annotations from 1')
    # mmdet reads `area` when it loads, pycocotools `iscrowd` when it evaluates.
    required = {'area': 'width * height of the box', 'iscrowd': '0'}
    for name in ('area',) if file.split.name == 'train' else required:
        lacking = [annotation.get('id') for annotation in file.annotations if name not in annotation]
        if lacking:
            problem = f'annotations without {name!r}, which stops the run with a KeyError: ids {some(lacking)}'
            yield file.error(problem, f'add {name!r}: {required[name]}')
    areas = {annotation.get('id'): annotation.get('area', 0) for annotation in file.annotations}
    odd = [number for number, area in areas.items() if type(area) not in (int, float) or not 0 <= area < math.inf]
    if odd:
        yield file.error(f"annotations whose 'area' is not a number from 0: ids {some(odd)}", 'write numbers of pixels')
    odd = [annotation.get('id') for annotation in file.annotations if annotation.get('iscrowd', 0) not in (0, 1)]
    if odd:
        yield file.error(f"annotations whose 'iscrowd' is neither 0 nor 1: ids {some(odd)}", 'write 0 or 1')


def _check_references(file: _CocoFile) -> Iterator[Finding]:
    lost = [annotation.get('id') for annotation in file.annotations if annotation.get('image_id') not in file.sizes]
    if lost:
        yield file.error(f'annotations of images that are not in the file: ids {some(lost)}', 'remove them')
    names = {category.get('id'): category.get('name') for category in file.categories}
    used = dict.fromkeys(annotation.get('category_id') for annotation in file.annotations)
    unknown = [number for number in used if number not in names]
    if unknown:
        problem = f'annotations with an unknown category_id: {some(unknown)}; the categories are {some(names, 8)}'
        yield file.error(problem, 'correct category_id, or add the categories')


def _check_coverage(file: _CocoFile) -> Iterator[Finding]:
    split = file.split
    used_ids = {annotation.get('category_id') for annotation in file.annotations}
    used = {category.get('name') for category in file.categories if category.get('id') in used_ids}
    known = {category.get('name') for category in file.categories}
    unused = [name for name in split.classes if name in known - used]
    if unused:
        problem = f'classes without annotations in the {split.name} set: {some(unused, 8)}'
        yield file.warning(problem, f'annotate them, or remove them from {split.key}.metainfo.classes')
    if split.name == 'train':
        yield from _check_filtered(file)


def _check_filtered(file: _CocoFile) -> Iterator[Finding]:
    """Report the training images that mmdet's ``filter_cfg`` removes."""
    split, rules = file.split, file.split.config.get('filter_cfg') or {}
    empty = len(file.sizes.keys() - {annotation.get('image_id') for annotation in file.annotations})
    if empty and rules.get('filter_empty_gt'):
        problem = f'training images without annotations, which are skipped ({empty} of {len(file.sizes)})'
        fix = f'to train on them: {split.key}.filter_cfg.filter_empty_gt=False'
        yield Finding(NOTE, problem, str(file.path), fix)
    shortest, limit = [min(size) for size in file.sizes.values() if _are_numbers(size)], rules.get('min_size', 0)
    small = sum(side < limit for side in shortest)
    if small:
        problem = (
            f'training images with a side shorter than {limit} pixels, which are skipped ({small} of {len(file.sizes)})'
        )
        fix = f'to train on them: {split.key}.filter_cfg.min_size=1'
        yield Finding(ERROR if small == len(file.sizes) else NOTE, problem, str(file.path), fix)


def _are_numbers(size: tuple) -> bool:
    return all(type(side) in (int, float) for side in size)


def _check_images(file: _CocoFile, fast: bool) -> Iterator[Finding]:
    split, prefix = file.split, file.split.config.get('data_prefix') or {}
    folder = os.path.realpath(split.path(prefix.get('img', prefix.get('img_path'))))
    for image in file.images:
        path = os.path.normpath(os.path.join(folder, str(image.get('file_name'))))
        split.images[path] = (image.get('width'), image.get('height'))
    present, missing, miscased = _locate(split.images)
    if missing:
        problem = f'missing images ({len(missing)} of {len(split.images)}): {some(missing)}'
        if miscased:
            fix = f'correct upper and lower case: {some(os.path.basename(path) for path in miscased)}'
        elif present:
            fix = 'add the files, or remove their entries'
        else:
            fix = f"{split.key}.data_prefix.img='<the folder of {os.path.basename(missing[0])}>'"
        yield Finding(ERROR, problem, str(file.path) if present else f'{split.key}.data_prefix.img', fix)
    yield from _check_pixels(file, folder, sample(present) if fast else present)


def _check_pixels(file: _CocoFile, folder: str, paths: list[str]) -> Iterator[Finding]:
    unreadable, resized = [], []
    for path, problem, size in map_in_threads(_open_image, paths, f'{file.split.name} images'):
        stated = file.split.images[path]
        if problem:
            unreadable.append(f'{path} ({problem})')
        elif size != stated:
            resized.append(f'{os.path.basename(path)} is {size[0]}x{size[1]}, not {stated[0]}x{stated[1]}')
    if unreadable:
        yield Finding(ERROR, f'unreadable images: {some(unreadable)}', folder, 'replace these files')
    if resized:
        fix = 'correct width and height; if they are swapped, the image has an EXIF rotation: save it upright'
        yield file.error(f'image sizes differ from those in the file: {some(resized)}', fix)


def _locate(paths: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the paths that exist, those that do not, and of the latter those that exist in another case."""
    present: list[str] = []
    missing: list[str] = []
    listings: dict[str, set[str]] = {}  # one listing of a folder takes less time than one look-up for each file
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        (present if name in listings[folder] else missing).append(path)
    lower = {os.path.join(folder, name.lower()) for folder, names in listings.items() for name in names}
    miscased = [
        path for path in missing if os.path.join(os.path.dirname(path), os.path.basename(path).lower()) in lower
    ]
    return present, missing, miscased


def _open_image(path: str) -> tuple[str, str, tuple[int, int]]:
    """Return the path, what is wrong with the image, and its size as OpenCV reads it."""
    try:
        with open_image(path) as image:
            image.load()
            return path, '', ImageOps.exif_transpose(image).size
    except UNREADABLE as error:
        return path, str(error).replace(path, os.path.basename(path)) or type(error).__name__, (0, 0)


def _array(rows: Iterable[Sequence[float]], columns: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64).reshape(-1, columns)  # a third of np.array's time


def _check_boxes(file: _CocoFile) -> Iterator[Finding]:
    boxed: list[dict] = []
    boxless: list[dict] = []
    for annotation in file.annotations:
        box = annotation.get('bbox')
        (boxed if isinstance(box, list) and len(box) == 4 else boxless).append(annotation)
    if boxless:
        problem = f'annotations without a box [x, y, width, height]: ids {some(a.get("id") for a in boxless)}'
        yield file.error(problem, 'add the boxes, or remove the annotations')
    boxed = [annotation for annotation in boxed if annotation.get('image_id') in file.sizes]
    if not boxed:
        yield file.error('no annotation with a box', 'export the file again, with boxes')
        return
    if not set(map(type, chain.from_iterable(annotation['bbox'] for annotation in boxed))) <= {int, float}:
        text = [a.get('id') for a in boxed if not set(map(type, a['bbox'])) <= {int, float}]
        yield file.error(
            f'boxes with coordinates that are not numbers: ids {some(text)}', 'write numbers, without quotes'
        )
        return
    try:
        boxes = _array((annotation['bbox'] for annotation in boxed), 4)
        sizes = _array((file.sizes[annotation['image_id']] for annotation in boxed), 2)
    except (TypeError, ValueError, OverflowError) as error:
        yield file.error(f'boxes or image sizes that are not numbers: {error}', 'write numbers, without quotes')
        return
    if file.split.name == 'train' and all(annotation.get('iscrowd') for annotation in boxed):
        yield file.error('all annotations are crowds: there is nothing to train on', "set 'iscrowd' to 0")
    yield from _check_coordinates(file, boxes, sizes, [annotation.get('id') for annotation in boxed])


def _check_coordinates(file: _CocoFile, boxes: np.ndarray, sizes: np.ndarray, ids: list) -> Iterator[Finding]:
    """Check boxes (N, 4) as x, y, width, height against the sizes (N, 2) of their images."""
    corner, extent = boxes[:, :2], boxes[:, 2:]
    finite = np.isfinite(boxes).all(axis=1)
    small = finite & (extent < 1).any(axis=1)  # mmdet skips these
    outside = finite & ((corner >= sizes) | (corner + extent <= 0)).any(axis=1)
    huge = finite & (np.abs(boxes) > LARGEST_COORDINATE).any(axis=1)
    across = finite & ~outside & ~huge & ((corner < -1) | (corner + extent > sizes + 1)).any(axis=1)
    if (boxes[finite] <= 1).all():
        problem = 'all coordinates are at most 1: the boxes are relative to the image size'
        yield file.error(problem, 'write pixels: [x, y, width, height]')
    elif across.mean() > 0.3 and (extent[finite] > corner[finite]).mean() > 0.95:
        problem = f'boxes that look like [x1, y1, x2, y2]: {across.sum()} of {len(boxes)} extend beyond the image'
        yield file.error(problem, 'write [x, y, width, height]')
    else:
        for chosen, severity, problem, fix in (
            (~finite, ERROR, 'boxes with NaN or infinite coordinates', 'correct or remove them'),
            (huge, ERROR, 'boxes with coordinates beyond any image', 'correct or remove them'),
            (small, ERROR if small.all() else WARNING, TOO_SMALL, 'write [x, y, width, height], or remove them'),
            (outside, ERROR, 'boxes outside their image', 'correct or remove them; are width and height swapped?'),
            (across, WARNING, 'boxes that extend beyond the image, clipped in training', 'clip them to the image'),
        ):
            if chosen.any():
                chosen_ids = some(ids[index] for index in np.flatnonzero(chosen))
                yield Finding(severity, f'{problem}: ids {chosen_ids}', str(file.path), fix)


def _check_masks(file: _CocoFile, fast: bool) -> Iterator[Finding]:
    """Check the numbers of all masks, and draw them unless ``fast``."""
    problems = defaultdict(list)
    for annotation in file.annotations:
        problem = _mask_problem(annotation.get('segmentation'), file.sizes.get(annotation.get('image_id')))
        if problem:
            problems[problem].append(annotation.get('id'))
    if not fast:
        areas = map_in_threads(partial(_mask_area, sizes=file.sizes), file.annotations, f'{file.split.name} masks')
        problems['masks without area'] += [number for number, area in areas if area == 0]
    for problem, ids in problems.items():
        if problem == NO_MASK and len(ids) == len(file.annotations):
            fix = 'add masks, or use a config without masks such as configs/detection/retinanet_*.py'
        else:
            fix = 'draw these masks again, or remove the annotations'
        if ids:
            yield file.error(f'{problem}: ids {some(ids)}', fix)


def _mask_problem(mask: Any, size: tuple | None) -> str:
    """Return what is wrong with a mask as far as it is known without drawing it, else an empty string."""
    if not mask:
        return NO_MASK
    if isinstance(mask, list):
        return polygon_problem(mask, size)
    return rle_problem(mask, size) if isinstance(mask, dict) and mask.get('counts') else NEITHER


def _mask_area(annotation: dict, sizes: dict) -> tuple[Any, int | None]:
    """Return the id and the area in pixels; the area is None where ``_mask_problem`` has reported the mask already."""
    from pycocotools import mask as rle

    mask: Any = annotation.get('segmentation')
    size = sizes.get(annotation.get('image_id'))
    if size is None or _mask_problem(mask, size):
        return annotation.get('id'), None
    width, height = size
    try:
        if isinstance(mask, list):
            mask = rle.merge(rle.frPyObjects(mask, height, width))
        elif isinstance(mask['counts'], list):
            mask = rle.frPyObjects(mask, height, width)
        return annotation.get('id'), int(rle.area(mask))
    except (TypeError, ValueError, OverflowError):
        return annotation.get('id'), 0


def _check_evaluators(cfg: Config, found: list[Split]) -> list[Finding]:
    findings = []
    for name in ('val', 'test'):
        files = [split.path(split.config.get('ann_file')) for split in found if split.name == name]
        evaluators = cfg.get(f'{name}_evaluator') or []
        single = isinstance(evaluators, dict)
        for index, evaluator in enumerate([evaluators] if single else evaluators):
            file = evaluator.get('ann_file')
            key = f'{name}_evaluator.ann_file' if single else f'{name}_evaluator.{index}.ann_file'
            if file and len(files) == 1 and os.path.realpath(file) != os.path.realpath(files[0]):
                problem = f'the evaluator reads {file}, but the {name} images come from {files[0]}'
                findings.append(Finding(ERROR, problem, key, f"{key}='{files[0]}'"))
    return findings
