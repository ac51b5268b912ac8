"""Checks of segmentation folders against a config."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmplugin.text import some

from .findings import ERROR, NOTE, WARNING, Finding, Split, check_classes, check_overlap, each, sample, splits

IGNORED = 255


@dataclass
class _Mask:
    """What one label file holds."""

    path: Path
    problem: str = ''
    mode: str = 'L'
    channels: int = 1
    size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)
    values: tuple = ()  # labels, or colours where there are several channels


def check_seg(cfg: Config, fast: bool) -> list[Finding]:
    """Everything that can be said about the datasets of a segmentation config."""
    findings, checked = [], {}
    found = splits(cfg)
    keys = [f'{split.key}.reduce_zero_label' for split in found]
    for split in found:
        findings += check_classes(cfg, split)
        if not isinstance(split.classes, tuple):
            continue
        identity = (split.config.get('ann_file'), str(split.option('data_prefix')), split.config.get('data_root'))
        if identity in checked:
            split.images = checked[identity].images
            continue
        checked[identity] = split
        if split.remote:
            findings.append(Finding(NOTE, 'not checked: no local files', split.key, 'nothing to change'))
            continue
        findings += _check_options(split)
        pairs, problems = _pairs(split)
        findings += problems
        findings += _check_masks(split, pairs, keys, fast)
    return findings + check_overlap(found)


def _check_options(split: Split) -> list[Finding]:
    """Settings that mmseg refuses, or reads in another way than their author meant."""
    findings, known = [], split.known_classes
    strangers = [name for name in split.classes if name not in known] if known else []
    if strangers:
        text = f'{split.config["type"]} has class names of its own and does not know {some(strangers)}'
        mend = "type='BaseSegDataset', with reduce_zero_label, img_suffix and seg_map_suffix set for your files"
        findings.append(Finding(ERROR, text, f'{split.key}.type', mend))
    reduce = bool(split.option('reduce_zero_label'))
    for index, step in enumerate(split.config.get('pipeline') or []):
        own = step.get('reduce_zero_label') if step.get('type') == 'LoadAnnotations' else None
        if own is not None and own != reduce:
            text = f'the dataset says reduce_zero_label={reduce}, this step says {own}: mmseg stops at the first image'
            key = f'{split.key}.pipeline.{index}.reduce_zero_label'
            mend = f'remove it here: {split.key}.reduce_zero_label={reduce} decides'
            findings.append(Finding(ERROR, text, key, mend))
    return findings


def _names(folder: Path, suffix: str) -> set[str]:
    """Paths below `folder` without their suffix, as mmseg collects them."""
    found = set()
    for parent, _, files in os.walk(folder):
        below = os.path.relpath(parent, folder)
        paths = (os.path.normpath(os.path.join(below, name)) for name in files if name.endswith(suffix))
        found |= {path[: -len(suffix)] for path in paths}
    return found


def _pairs(split: Split) -> tuple[list[tuple[Path, Path]], list[Finding]]:
    prefix = split.option('data_prefix') or {}
    folders = {name: split.path(prefix.get(name)) for name in ('img_path', 'seg_map_path')}
    findings = [
        Finding(
            ERROR,
            f'no such folder: {folder}',
            f'{split.key}.data_prefix.{name}',
            f"{split.key}.data_prefix.{name}='<an existing folder>', or your own data: --data-root FOLDER",
        )
        for name, folder in folders.items()
        if not folder.is_dir()
    ]
    if findings:
        return [], findings
    image_suffix, mask_suffix = split.option('img_suffix') or '.jpg', split.option('seg_map_suffix') or '.png'
    images, masks = _names(folders['img_path'], image_suffix), _names(folders['seg_map_path'], mask_suffix)
    wanted, listing = images, split.config.get('ann_file')
    if listing:
        path = split.path(listing)
        if not path.is_file():
            mend = f"{split.key}.ann_file='' takes all images of the folder"
            return [], [Finding(ERROR, f'no such file: {path}', f'{split.key}.ann_file', mend)]
        wanted = {line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()}
        absent = sorted(wanted - images)
        if absent:
            text = f'{len(absent)} listed images missing, with suffix {image_suffix!r}: {some(absent)}'
            findings.append(Finding(ERROR, text, str(path), 'list names without suffix; mind img_suffix'))
    for what, names, suffix, key in (
        ('images', images, image_suffix, 'img'),
        ('masks', masks, mask_suffix, 'seg_map'),
    ):
        if not names:
            folder = folders[f'{key}_path']
            there = sorted({path.suffix for path in folder.rglob('*') if path.is_file() and path.suffix})
            text = f'no {what} with suffix {suffix!r} in {folder}; found {some(there) or "nothing"}'
            mend = f'{split.key}.{key}_suffix={there[0] if there else ".png"!r}'
            findings.append(Finding(ERROR, text, f'{split.key}.{key}_suffix', mend))
    both = sorted(wanted & images & masks)
    if images and masks:
        lonely = sorted((wanted & images) - masks)
        if lonely:
            text = f'{len(lonely)} of {len(wanted)} images without a mask: {some(lonely)}'
            mend = f'add the masks as <name>{mask_suffix}, or set {split.key}.seg_map_suffix'
            findings.append(Finding(ERROR, text, str(folders['seg_map_path']), mend))
        spare = sorted(masks - images)
        if spare:
            text = f'{len(spare)} masks without an image: {some(spare)}'
            findings.append(Finding(WARNING, text, str(folders['img_path']), 'add the images or remove the masks'))
    pairs = [(folders['img_path'] / (n + image_suffix), folders['seg_map_path'] / (n + mask_suffix)) for n in both]
    split.images = dict.fromkeys(os.path.realpath(image) for image, _ in pairs)
    return pairs, findings


def _read(pair: tuple[Path, Path]) -> _Mask:
    image_path, path = pair
    try:
        with Image.open(image_path) as image, Image.open(path) as opened:
            pixels = np.asarray(opened)
            channels = 1 if pixels.ndim == 2 else pixels.shape[2]
            if channels > 1:
                few = pixels.reshape(-1, channels)[:: max(1, pixels.size // 30000)]
                values = [tuple(colour) for colour in np.unique(few, axis=0).tolist()]
            elif pixels.dtype == np.uint8:
                values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
            else:
                values = np.unique(pixels.astype(np.int64)).tolist()
            return _Mask(path, '', opened.mode, channels, opened.size, image.size, tuple(values))
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow raises SyntaxError for broken PNG
        return _Mask(path, str(error) or type(error).__name__)


def _check_masks(split: Split, pairs: list[tuple[Path, Path]], keys: list[str], fast: bool) -> list[Finding]:
    masks = list(each(_read, sample(pairs) if fast else pairs, f'{split.name} masks'))
    readable = [mask for mask in masks if not mask.problem]
    folder = str(pairs[0][1].parent) if pairs else split.key
    findings = []

    def add(severity: str, chosen: list[_Mask], what: str, mend: str) -> None:
        if chosen:
            text = f'{len(chosen)} of {len(masks)} masks {what}: {some(mask.path.name for mask in chosen)}'
            findings.append(Finding(severity, text, folder, mend))

    broken = [mask for mask in masks if mask.problem]
    add(ERROR, broken, f'or their images unreadable ({some({mask.problem for mask in broken})})', 'replace these files')
    other = [mask for mask in readable if mask.size != mask.image_size]
    sizes = some(f'{m.size[0]}x{m.size[1]} for an image of {m.image_size[0]}x{m.image_size[1]}' for m in other)
    add(ERROR, other, f'differ in size from their image ({sizes})', 'resize the masks with nearest neighbour')
    coloured = [mask for mask in readable if mask.channels > 1]
    tones = some(sorted({value for mask in coloured for value in mask.values}), 6)
    mend = 'write one channel: the class index in place of its colour, as 8-bit greyscale PNG'
    add(ERROR, coloured, f'have several channels (mode {some({m.mode for m in coloured})}, colours {tones})', mend)
    palette = [mask for mask in readable if mask.mode == 'P']
    loaders = [step for step in split.config.get('pipeline') or [] if step.get('type') == 'LoadAnnotations']
    if any(step.get('imdecode_backend', 'pillow') != 'pillow' for step in loaders):
        mend = f"{split.key}.pipeline: LoadAnnotations with imdecode_backend='pillow'"
        add(ERROR, palette, 'have a palette, of which this image decoder returns colours, not indices', mend)
    single = [mask for mask in readable if mask.channels == 1]
    deep = [mask for mask in single if max(mask.values) > 255 or min(mask.values) < 0]
    add(ERROR, deep, 'hold values beyond 0...255, which mmseg cuts to 8 bits', 'write 8-bit PNG with 255 for ignored')
    if deep or not single:
        return findings
    return findings + _check_values(split, single, folder, keys, fast)


def _meanings(split: Split) -> np.ndarray:
    """The class index that mmseg makes of each stored value, (256,): what its LoadAnnotations does."""
    meaning = np.arange(256)
    if split.option('reduce_zero_label'):
        meaning = np.where(meaning == 0, IGNORED, np.where(meaning == IGNORED, IGNORED, meaning - 1))
    known = split.known_classes
    if known and tuple(known) != split.classes and set(split.classes) <= set(known):
        new = {name: index for index, name in enumerate(split.classes)}
        renamed = np.array([new.get(name, IGNORED) for name in known] + list(range(len(known), 256)))
        meaning = renamed[meaning]
    return meaning


def _check_values(split: Split, masks: list[_Mask], folder: str, keys: list[str], fast: bool) -> list[Finding]:
    count, reduce = len(split.classes), bool(split.option('reduce_zero_label'))
    setting = ' '.join(f'{key}={not reduce}' for key in keys)  # as --cfg-options takes it: in all sets or in none
    seen = {value: mask.path.name for mask in reversed(masks) for value in mask.values}
    if set(seen) <= {0, 255} and 255 in seen:
        text = f'masks hold only {some(sorted(seen))}: 255 means ignored, so the foreground is never learned'
        mend = "write 1 in place of 255 (mask[mask == 255] = 1), classes=('background', 'foreground')"
        return [Finding(ERROR, text, folder, f'{mend}, {setting}' if reduce else mend)]
    meaning = _meanings(split)
    wrong = sorted(value for value in seen if meaning[value] >= count and meaning[value] != IGNORED)
    used = {int(meaning[value]) for value in seen} - {IGNORED}
    if wrong:
        top = max(value for value in seen if value != IGNORED)
        allowed = f'1...{count} (0 and 255 are ignored)' if reduce else f'0...{count - 1} (255 is ignored)'
        text = f'labels {some(wrong, 6)} are out of range (e.g. {seen[wrong[0]]}): {count} classes with '
        text += f'reduce_zero_label={reduce} allow {allowed}'
        if not reduce and top == count:
            mend = f'{setting} if 0 means unlabelled and 1 is the first class; else name {top + 1} classes'
        else:
            mend = f'name {top if reduce else top + 1} classes in metainfo and heads (--classes), or write 255 there'
        return [Finding(ERROR, text, folder, mend)]
    if not used:
        text = f'every pixel is ignored: masks hold only {some(sorted(seen))}'
        return [Finding(ERROR, text, folder, f'{setting}, or other masks')]
    findings = []
    if reduce and 0 in seen and count - 1 not in used and len(used) == count - 1:
        text = f'0 is ignored (reduce_zero_label=True) and {split.classes[-1]!r} never occurs: 0 may be the first class'
        findings.append(Finding(WARNING, text, folder, f'{setting} if 0 is {split.classes[0]!r}'))
    never = [name for index, name in enumerate(split.classes) if index not in used]
    if never and not fast:
        text = f'classes that never occur in the {split.name} masks: {some(never, 8)}'
        findings.append(Finding(WARNING, text, folder, 'label them, or drop them from metainfo.classes and the heads'))
    return findings
