"""Checks of segmentation folders against a config."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmplugin.findings import ERROR, NOTE, WARNING, Finding
from mmplugin.image_files import MOST_MASK_PIXELS, UNREADABLE, open_image
from mmplugin.text import some

from .splits import Split, check_classes, check_overlap, distinct, map_in_threads, sample, splits

IGNORED = 255
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # of EXIF


@dataclass
class _Folder:
    """The images or the masks of a split."""

    key: str  # config key of the dataset
    kind: str  # 'img' or 'seg_map', as in the names of the settings
    path: Path
    suffix: str

    @cached_property
    def names(self) -> set[str]:
        """Paths below the folder without their suffix, as mmseg collects them."""
        found = set()
        for parent, _, files in os.walk(self.path):
            below = os.path.relpath(parent, self.path)
            paths = (os.path.normpath(os.path.join(below, name)) for name in files if name.endswith(self.suffix))
            found |= {path.removesuffix(self.suffix) for path in paths}
        return found

    def problem(self) -> Finding | None:
        if not self.path.is_dir():
            key = f'{self.key}.data_prefix.{self.kind}_path'
            fix = f"{key}='<an existing folder>', or --data-root FOLDER for your own data"
            return Finding(ERROR, f'no such folder: {self.path}', key, fix)
        if not self.names:
            others = sorted({path.suffix for path in self.path.rglob('*') if path.is_file() and path.suffix})
            problem = f'no files with suffix {self.suffix!r} in {self.path}; found {some(others) or "nothing"}'
            key = f'{self.key}.{self.kind}_suffix'
            return Finding(ERROR, problem, key, f'{key}={others[0] if others else ".png"!r}')
        return None


@dataclass
class _Mask:
    """Content of a label file."""

    path: Path
    problem: str = ''
    mode: str = 'L'
    channels: int = 1
    size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)
    values: tuple = ()  # labels, or colors if there are several channels


def check_seg(cfg: Config, fast: bool) -> list[Finding]:
    """Check the datasets of a segmentation config."""
    found = splits(cfg)
    findings = [finding for split in found for finding in check_classes(cfg, split)]
    keys = [f'{split.key}.reduce_zero_label' for split in found]
    for split in distinct(found):
        if split.remote:
            findings.append(Finding(NOTE, 'not checked: the files are not local', split.key, 'nothing to change'))
            continue
        findings += _check_options(split)
        pairs, problems = _find_pairs(split)
        findings += problems
        findings += _check_masks(split, pairs, keys, fast)
    return findings + check_overlap(found)


def _check_options(split: Split) -> Iterator[Finding]:
    known = split.known_classes
    unknown = [name for name in split.classes if name not in known] if known else []
    if unknown:
        problem = f'{split.config["type"]} defines its own classes, without {some(unknown)}'
        fix = "type='BaseSegDataset', with reduce_zero_label, img_suffix and seg_map_suffix set for your files"
        yield Finding(ERROR, problem, f'{split.key}.type', fix)
    reduce = bool(split.option('reduce_zero_label'))
    for index, step in enumerate(split.config.get('pipeline') or []):
        of_step = step.get('reduce_zero_label') if step.get('type') == 'LoadAnnotations' else None
        if of_step is not None and of_step != reduce:
            problem = f'the dataset has reduce_zero_label={reduce}, this step {of_step}: mmseg refuses the first image'
            key = f'{split.key}.pipeline.{index}.reduce_zero_label'
            yield Finding(ERROR, problem, key, f'remove it from this step; {split.key}.reduce_zero_label is used')


def _find_pairs(split: Split) -> tuple[list[tuple[Path, Path]], list[Finding]]:
    """Return the images with their masks, and the problems of finding them."""
    prefix = split.option('data_prefix') or {}
    suffixes = {kind: split.option(f'{kind}_suffix') for kind in ('img', 'seg_map')}  # may be empty
    images, masks = (
        _Folder(split.key, kind, split.path(prefix.get(f'{kind}_path')), default if found is None else found)
        for (kind, found), default in zip(suffixes.items(), ('.jpg', '.png'), strict=True)
    )
    findings = [found for folder in (images, masks) if (found := folder.problem())]
    if findings:
        return [], findings
    wanted = images.names
    if split.config.get('ann_file'):
        listing = split.path(split.config['ann_file'])
        if not listing.is_file():
            key = f'{split.key}.ann_file'
            fix = f"{key}='' to use all images in the folder"
            problem = 'not a regular file' if listing.exists() else 'no such file'
            return [], [Finding(ERROR, f'{problem}: {listing}', key, fix)]
        wanted = {line.strip() for line in listing.read_text(encoding='utf-8').splitlines() if line.strip()}
        missing = sorted(wanted - images.names)
        if missing:
            problem = f'images with suffix {images.suffix!r} missing ({len(missing)} of {len(wanted)}): {some(missing)}'
            fix = f'list names without suffix, or correct {split.key}.img_suffix'
            findings.append(Finding(ERROR, problem, str(listing), fix))
    without_mask = sorted((wanted & images.names) - masks.names)
    if without_mask:
        problem = f'images without a mask ({len(without_mask)} of {len(wanted)}): {some(without_mask)}'
        fix = f'add the masks as <name>{masks.suffix}, or correct {split.key}.seg_map_suffix'
        findings.append(Finding(ERROR, problem, str(masks.path), fix))
    without_image = sorted(masks.names - images.names)
    if without_image:
        problem = f'masks without an image: {some(without_image)}'
        findings.append(Finding(WARNING, problem, str(images.path), 'add the images, or remove the masks'))
    names = sorted(wanted & images.names & masks.names)
    pairs = [(images.path / (name + images.suffix), masks.path / (name + masks.suffix)) for name in names]
    split.images = dict.fromkeys(os.path.realpath(image) for image, _ in pairs)
    return pairs, findings


def _upright(image: Image.Image) -> tuple[int, int]:
    """Return the size as OpenCV reads an image: a quarter turn in its EXIF data swaps the sides."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION, 1) in QUARTER_TURNS else (width, height)


def _read(pair: tuple[Path, Path]) -> _Mask:
    image_path, path = pair
    try:
        with open_image(image_path) as image, open_image(path, MOST_MASK_PIXELS) as opened:
            pixels = np.asarray(opened)
            channels = 1 if pixels.ndim == 2 else pixels.shape[2]
            if channels > 1:
                few = pixels.reshape(-1, channels)[:: max(1, pixels.size // 30000)]
                values = [tuple(color) for color in np.unique(few, axis=0).tolist()]
            elif pixels.dtype == np.uint8:
                values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
            else:
                values = np.unique(pixels.astype(np.int64)).tolist()
            return _Mask(path, '', opened.mode, channels, opened.size, _upright(image), tuple(values))
    except UNREADABLE as error:
        return _Mask(path, str(error) or type(error).__name__)


def _check_masks(split: Split, pairs: list[tuple[Path, Path]], keys: list[str], fast: bool) -> list[Finding]:
    masks = list(map_in_threads(_read, sample(pairs) if fast else pairs, f'{split.name} masks'))
    folder = str(pairs[0][1].parent) if pairs else split.key
    findings = []

    def report(chosen: list[_Mask], problem: str, fix: str) -> None:
        if chosen:
            text = f'{problem} ({len(chosen)} of {len(masks)}): {some(mask.path.name for mask in chosen)}'
            findings.append(Finding(ERROR, text, folder, fix))

    broken = [mask for mask in masks if mask.problem]
    readable = [mask for mask in masks if not mask.problem]
    report(broken, f'unreadable masks or images: {some({m.problem for m in broken})}', 'replace these files')
    resized = [mask for mask in readable if mask.size != mask.image_size]
    sizes = some(f'{m.size[0]}x{m.size[1]} for an image of {m.image_size[0]}x{m.image_size[1]}' for m in resized)
    report(
        resized, f'masks of another size than their image: {sizes}', 'resize them with nearest-neighbor interpolation'
    )
    colored = [mask for mask in readable if mask.channels > 1]
    colors = some(sorted({value for mask in colored for value in mask.values}), 6)
    fix = 'write one channel with the class index instead of its color, as 8-bit grayscale PNG'
    report(colored, f'masks with several channels: mode {some({m.mode for m in colored})}, colors {colors}', fix)
    loaders = [step for step in split.config.get('pipeline') or [] if step.get('type') == 'LoadAnnotations']
    if any(step.get('imdecode_backend', 'pillow') != 'pillow' for step in loaders):
        with_palette = [mask for mask in readable if mask.mode == 'P']
        fix = f"{split.key}.pipeline: LoadAnnotations with imdecode_backend='pillow'"
        report(with_palette, 'masks with a palette: this decoder returns its colors instead of the indices', fix)
    single = [mask for mask in readable if mask.channels == 1]
    deep = [mask for mask in single if max(mask.values) > 255 or min(mask.values) < 0]
    report(deep, 'masks with values outside 0...255, which mmseg truncates', 'write 8-bit PNG; 255 means ignored')
    if deep or not single:
        return findings
    return [*findings, *_check_values(split, single, folder, keys, fast)]


def _class_of_value(split: Split) -> np.ndarray:
    """Return the class index that mmseg's ``LoadAnnotations`` assigns to each stored value, (256,)."""
    index: np.ndarray = np.arange(256)
    if split.option('reduce_zero_label'):
        index = np.where(index == 0, IGNORED, np.where(index == IGNORED, IGNORED, index - 1))
    known = split.known_classes
    if known and tuple(known) != split.classes and set(split.classes) <= set(known):
        new = {name: number for number, name in enumerate(split.classes)}
        renumbered = np.array([new.get(name, IGNORED) for name in known] + list(range(len(known), 256)))
        index = renumbered[index]
    return index


def _check_values(split: Split, masks: list[_Mask], folder: str, keys: list[str], fast: bool) -> Iterator[Finding]:
    """Check the labels in the masks against the classes; the first error is the cause of all others."""
    count, reduce = len(split.classes), bool(split.option('reduce_zero_label'))
    setting = ' '.join(f'{key}={not reduce}' for key in keys)  # for --cfg-options: all splits must agree
    seen = {value: mask.path.name for mask in reversed(masks) for value in mask.values}
    index = _class_of_value(split)
    used = {int(index[value]) for value in seen} - {IGNORED}
    if set(seen) <= {0, 255} and 255 in seen:
        problem = f'the masks hold only {some(sorted(seen))}: 255 means ignored, so the foreground is never trained'
        fix = "write 1 instead of 255 (mask[mask == 255] = 1), classes=('background', 'foreground')"
        yield Finding(ERROR, problem, folder, f'{fix}, {setting}' if reduce else fix)
        return
    if any(number >= count for number in used):
        yield _out_of_range(seen, index, count, reduce, setting, folder)
        return
    if not used:
        problem = f'every pixel is ignored: the masks hold only {some(sorted(seen))}'
        yield Finding(ERROR, problem, folder, f'{setting}, or use other masks')
        return
    if reduce and 0 in seen and count - 1 not in used and len(used) == count - 1:
        problem = f'0 is ignored (reduce_zero_label=True), and {split.classes[-1]!r} never occurs: 0 may be a class'
        yield Finding(WARNING, problem, folder, f'{setting} if 0 is {split.classes[0]!r}')
    never = [name for number, name in enumerate(split.classes) if number not in used]
    if never and not fast:
        problem = f'classes that never occur in the {split.name} masks: {some(never, 8)}'
        yield Finding(WARNING, problem, folder, 'label them, or remove them from metainfo.classes and the heads')


def _out_of_range(
    seen: dict[int, str], index: np.ndarray, count: int, reduce: bool, setting: str, folder: str
) -> Finding:
    wrong = sorted(value for value in seen if index[value] >= count and index[value] != IGNORED)
    allowed = f'1...{count} (0 and 255 are ignored)' if reduce else f'0...{count - 1} (255 is ignored)'
    problem = f'labels {some(wrong, 6)} are out of range (for example in {seen[wrong[0]]}): {count} classes with '
    problem += f'reduce_zero_label={reduce} allow {allowed}'
    needed = max(value for value in seen if value != IGNORED) + (not reduce)
    if not reduce and needed == count + 1:
        fix = f'{setting} if 0 means unlabeled and 1 is the first class; otherwise name {needed} classes'
    else:
        fix = f'name {needed} classes in metainfo and heads (--classes), or set these pixels to 255'
    return Finding(ERROR, problem, folder, fix)
