"""Checks of COCO-style data against a config."""

import gc
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image, ImageOps

from mmplugin.text import some

from .findings import ERROR, NOTE, WARNING, Finding, Split, check_classes, check_overlap, each, sample, splits

MASK_SAMPLE = 20_000  # annotations whose masks the fast check looks at


@contextmanager
def _without_collection() -> Iterator[None]:
    """COCO's file is ten million objects, none of them garbage: searching them for some doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collection()
def check_coco(cfg: Config, fast: bool) -> list[Finding]:
    """Everything that can be said about the datasets and evaluators of a detection config."""
    findings, read, checked = [], {}, {}
    found = splits(cfg)
    for split in found:
        findings += check_classes(cfg, split)
        identity = (split.config.get('ann_file'), str(split.config.get('data_prefix')), split.config.get('data_root'))
        if identity in checked:
            split.images = checked[identity].images
            continue
        if not isinstance(split.classes, tuple):
            continue
        checked[identity] = split
        if split.remote or not _reads_coco(split):
            kind = split.config.get('type')
            findings.append(Finding(NOTE, f'not checked: {kind}, not local COCO files', split.key, 'nothing to change'))
            continue
        path = split.path(split.config.get('ann_file'))
        if path not in read:
            content, problems = _read(path, split)
            findings += problems
            read[path] = content
        if read[path] is not None:
            findings += _check_split(cfg, split, path, read[path], fast)
    return findings + check_overlap(found) + _check_evaluators(cfg, found)


def _reads_coco(split: Split) -> bool:
    return any(parent.__name__ == 'CocoDataset' for parent in getattr(split.dataset_class, '__mro__', ()))


def _read(path: Path, split: Split) -> tuple[dict | None, list[Finding]]:
    key = f'{split.key}.ann_file'
    if not path.is_file():
        root = split.config.get('data_root') or 'the current folder'
        mend = f"{key}='<an existing file below {root}>', or your own data: --data-root FOLDER"
        return None, [Finding(ERROR, f'no such file: {path}', key, mend)]
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        return None, [Finding(ERROR, f'not readable as JSON: {error}', str(path), 'export the file again')]
    lists = ('images', 'annotations', 'categories')
    absent = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if absent:
        text = f'not an instance file of COCO: without a list named {some(absent)}'
        return None, [Finding(ERROR, text, str(path), f"{key}='<a file with {some(lists)}>'")]
    odd = [name for name in lists if not all(isinstance(entry, dict) for entry in content[name])]
    if odd:
        return None, [Finding(ERROR, f'not objects in the list {some(odd)}', str(path), 'export the file again')]
    return content, []


def _check_split(cfg: Config, split: Split, path: Path, content: dict, fast: bool) -> list[Finding]:
    findings = _check_categories(split, path, content['categories'])
    sizes = {image.get('id'): (image.get('width'), image.get('height')) for image in content['images']}
    findings += _check_ids(split, path, content, sizes)
    findings += _check_images(split, path, content['images'], fast)
    findings += _check_boxes(path, content['annotations'], sizes)
    if any('mask_head' in key for key in _keys(cfg.get('model'))):
        findings += _check_masks(path, content['annotations'], sizes, fast)
    return findings


def _keys(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [*node, *(key for value in node.values() for key in _keys(value))]
    return [key for value in node for key in _keys(value)] if isinstance(node, list | tuple) else []


def _check_categories(split: Split, path: Path, categories: list[dict]) -> list[Finding]:
    names, key, findings = [category.get('name') for category in categories], f'{split.key}.metainfo.classes', []
    option = f'--classes {",".join(map(str, names))}'
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        text = f'categories of the same name: {some(doubled)}'
        findings.append(Finding(ERROR, text, str(path), 'rename or merge them'))
    missing = [name for name in split.classes if name not in names]
    if missing:
        alike = {str(name).strip().casefold(): name for name in names}
        close = {name: alike.get(name.strip().casefold()) for name in missing}
        hints = [f'{name!r} is {there!r} there' for name, there in close.items() if there]
        text = f'classes that the file does not know: {some(missing, 5)}; it has {some(names, 8)}'
        text += f' ({some(hints)})' if hints else ''
        findings.append(Finding(ERROR, text, key, f'metainfo=dict(classes={tuple(names)}), or {option}'))
        return findings
    unused = [name for name in names if name not in split.classes]
    if unused:
        text = f'categories of the file that are not trained: {some(unused, 5)}'
        mend = f'if they should be: metainfo=dict(classes={tuple(names)}), or {option}'
        findings.append(Finding(WARNING, text, key, mend))
    order = tuple(name for name in names if name in split.classes)
    if order != split.classes and not doubled:
        # mmdet numbers the labels in the file's order and names them in the config's
        text = f'same names in another order: the file has {some(order, 8)}; results would carry the wrong names'
        findings.append(Finding(ERROR, text, key, f'metainfo=dict(classes={order})'))
    return findings


def _check_ids(split: Split, path: Path, content: dict, sizes: dict) -> list[Finding]:
    findings, annotations = [], content['annotations']
    for what in ('images', 'annotations', 'categories'):
        if len({entry.get('id') for entry in content[what]}) < len(content[what]):
            text = f'{what} with missing or repeated ids'
            findings.append(Finding(ERROR, text, str(path), f'number the {what} 1, 2, 3, ...'))
    # mmdet reads `area` of every annotation, pycocotools `iscrowd` when it measures
    for name in ('area', 'iscrowd') if split.name != 'train' else ('area',):
        bare = [annotation.get('id') for annotation in annotations if name not in annotation]
        if bare:
            text = f'annotations without {name!r}, which stops the run with a KeyError: ids {some(bare)}'
            value = 'width * height of the box' if name == 'area' else '0'
            findings.append(Finding(ERROR, text, str(path), f'add {name!r}: {value}'))
    if any(annotation.get('id') == 0 for annotation in annotations):
        text = 'an annotation has id 0: pycocotools takes its match for none and counts a miss'
        findings.append(Finding(WARNING, text, str(path), 'number the annotations from 1'))
    lost = [annotation.get('id') for annotation in annotations if annotation.get('image_id') not in sizes]
    if lost:
        text = f'annotations of images that the file lacks: ids {some(lost)}'
        findings.append(Finding(ERROR, text, str(path), 'remove them'))
    names = {category.get('id'): category.get('name') for category in content['categories']}
    counts = Counter(annotation.get('category_id') for annotation in annotations)
    unknown = [number for number in counts if number not in names]
    if unknown:
        text = f'annotations of unknown categories: category_id {some(unknown)}; known are {some(names, 8)}'
        findings.append(Finding(ERROR, text, str(path), 'correct category_id, or add the categories'))
    present = {names.get(number) for number in counts}
    never = [name for name in split.classes if name in names.values() and name not in present]
    if never:
        text = f'classes without a single annotation in the {split.name} set: {some(never, 8)}'
        mend = f'annotate them, or drop them from {split.key}.metainfo.classes'
        findings.append(Finding(WARNING, text, str(path), mend))
    bare = len(sizes) - len({annotation.get('image_id') for annotation in annotations})
    if split.name == 'train' and bare > 0 and (split.config.get('filter_cfg') or {}).get('filter_empty_gt'):
        text = f'{bare} of {len(sizes)} training images have no annotation and are left out'
        findings.append(Finding(NOTE, text, str(path), f'{split.key}.filter_cfg.filter_empty_gt=False keeps them'))
    return findings


def _check_images(split: Split, path: Path, images: list[dict], fast: bool) -> list[Finding]:
    prefix, key = split.config.get('data_prefix') or {}, f'{split.key}.data_prefix.img'
    folder = os.path.realpath(split.path(prefix.get('img', prefix.get('img_path'))))
    findings, present = [], []
    by_folder = defaultdict(list)
    for image in images:
        full = os.path.normpath(os.path.join(folder, str(image.get('file_name'))))
        split.images[full] = (image.get('width'), image.get('height'))
        parent, name = os.path.split(full)
        by_folder[parent].append(name)
    missing, other_case = [], []
    for parent, files in by_folder.items():
        names = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        lower = {name.lower() for name in names}
        for file in files:
            (present if file in names else missing).append(os.path.join(parent, file))
            if file not in names and file.lower() in lower:
                other_case.append(file)
    if missing:
        mend = (
            'add the files, or remove their entries'
            if present
            else f"{key}='<the folder of {os.path.basename(missing[0])}>'"
        )
        mend = f'mind upper and lower case: {some(other_case)}' if other_case else mend
        text = f'{len(missing)} of {len(split.images)} images missing: {some(missing)}'
        findings.append(Finding(ERROR, text, key if not present else str(path), mend))
    unreadable, wrong = [], []
    for file, problem, size in each(_open_image, sample(present) if fast else present, f'{split.name} images'):
        if problem:
            unreadable.append(f'{file} ({problem})')
        elif size != split.images[file]:
            stated = 'x'.join(map(str, split.images[file]))
            wrong.append(f'{os.path.basename(file)} is {size[0]}x{size[1]}, not {stated}')
    if unreadable:
        findings.append(Finding(ERROR, f'unreadable images: {some(unreadable)}', folder, 'replace these files'))
    if wrong:
        mend = 'correct width and height; if the two are swapped, an EXIF rotation is meant: save the pixels upright'
        findings.append(Finding(ERROR, f"sizes differ from the file's: {some(wrong)}", str(path), mend))
    return findings


def _open_image(path: str) -> tuple[str, str, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            image.load()
            return path, '', ImageOps.exif_transpose(image).size  # as OpenCV reads it
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow raises SyntaxError for broken PNG
        return path, str(error).replace(path, os.path.basename(path)) or type(error).__name__, (0, 0)


def _rows(rows: Iterable[Sequence[float]], length: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64).reshape(-1, length)  # a third of np.array's time


def _check_boxes(path: Path, annotations: list[dict], sizes: dict) -> list[Finding]:
    findings, usable, broken = [], [], []
    for annotation in annotations:
        box = annotation.get('bbox')
        if not isinstance(box, list) or len(box) != 4:
            broken.append(annotation.get('id'))
        elif annotation.get('image_id') in sizes:
            usable.append(annotation)
    if broken:
        text = f'annotations without a box [x, y, width, height]: ids {some(broken)}'
        findings.append(Finding(ERROR, text, str(path), 'add the boxes or remove the annotations'))
    if not usable:
        return [*findings, Finding(ERROR, 'no annotation with a box', str(path), 'export the file again, with boxes')]
    try:
        boxes = _rows((a['bbox'] for a in usable), 4)
        limits = _rows((sizes[a['image_id']] for a in usable), 2)
    except (TypeError, ValueError) as error:
        text = f'boxes or image sizes that are not numbers: {error}'
        return [*findings, Finding(ERROR, text, str(path), 'write numbers, without quotes')]
    ends = boxes[:, :2] + boxes[:, 2:]
    finite = np.isfinite(boxes).all(axis=1)
    empty = finite & ((boxes[:, 2:] < 1).any(axis=1))  # what mmdet leaves out
    outside = finite & ((boxes[:, :2] >= limits) | (ends <= 0)).any(axis=1)
    over = finite & ~outside & ((boxes[:, :2] < -1) | (ends > limits + 1)).any(axis=1)

    def ids(chosen: np.ndarray) -> str:
        return some(usable[index].get('id') for index in np.flatnonzero(chosen))

    if (boxes[finite] <= 1).all():
        text = "all coordinates are at most 1: boxes relative to the image's size"
        findings.append(Finding(ERROR, text, str(path), 'write pixels: [x, y, width, height]'))
        return findings
    if over.mean() > 0.3 and (boxes[finite, 2:] > boxes[finite, :2]).mean() > 0.95:
        text = f'{over.sum()} of {len(boxes)} boxes reach over the border: they look like [x1, y1, x2, y2]'
        findings.append(Finding(ERROR, text, str(path), 'write [x, y, width, height]'))
        return findings
    for chosen, severity, what, mend in (
        (~finite, ERROR, 'boxes that are not finite', 'correct or remove them'),
        (empty, WARNING, 'boxes narrower or lower than one pixel, left out in training', 'remove them'),
        (outside, ERROR, 'boxes outside their image', 'correct or remove them; width and height swapped?'),
        (over, WARNING, "boxes that reach over the image's border, cut off in training", 'clip them to the image'),
    ):
        if chosen.any():
            findings.append(Finding(severity, f'{chosen.sum()} {what}: ids {ids(chosen)}', str(path), mend))
    return findings


def _check_masks(path: Path, annotations: list[dict], sizes: dict, fast: bool) -> list[Finding]:
    problems = defaultdict(list)
    for annotation in sample(annotations, MASK_SAMPLE) if fast else annotations:
        problem = _mask_problem(annotation.get('segmentation'), sizes.get(annotation.get('image_id')))
        if problem:
            problems[problem].append(annotation.get('id'))
    if not fast:
        measure = partial(_mask_area, sizes=sizes)
        for number, area in each(measure, annotations, 'masks'):
            if area == 0:
                problems['masks without area'].append(number)
    mend = 'draw these masks again, or remove the annotations'
    findings = []
    for problem, numbers in problems.items():
        all_lack = problem.startswith('no mask') and len(numbers) >= min(len(annotations), MASK_SAMPLE)
        other = 'use a box-only config such as configs/detection/retinanet_*.py, or add masks' if all_lack else mend
        findings.append(Finding(ERROR, f'{problem}: {len(numbers)} annotations, ids {some(numbers)}', str(path), other))
    return findings


def _mask_problem(mask: Any, size: tuple[int, int] | None) -> str:
    """What can be said without drawing the mask."""
    if not mask:
        return 'no mask, but the model has a mask head'
    if isinstance(mask, list):
        lengths = [len(polygon) if isinstance(polygon, list) else 0 for polygon in mask]
        whole = all(length >= 6 and length % 2 == 0 for length in lengths)
        return '' if whole else 'polygons of fewer than three corners'
    if not isinstance(mask, dict) or not mask.get('counts'):
        return 'masks that are neither polygons nor run lengths'
    same = size is None or tuple(mask.get('size', ())) == size[::-1]
    return '' if same else 'run lengths of another size than the image'


def _mask_area(annotation: dict, sizes: dict) -> tuple[Any, int | None]:
    from pycocotools import mask as rle

    mask, size = annotation.get('segmentation'), sizes.get(annotation.get('image_id'))
    if size is None or _mask_problem(mask, size):
        return annotation.get('id'), None  # said already
    width, height = size
    try:
        if isinstance(mask, list):
            mask = rle.merge(rle.frPyObjects(mask, height, width))
        elif isinstance(mask['counts'], list):
            mask = rle.frPyObjects(mask, height, width)
        return annotation.get('id'), int(rle.area(mask))
    except (TypeError, ValueError):  # text in place of numbers: nothing to draw
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
                text = f'measures with {file}, but the {name} images come from {files[0]}'
                findings.append(Finding(ERROR, text, key, f"{key}='{files[0]}'"))
    return findings
