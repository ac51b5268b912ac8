"""Segmentation masks: image files with a number or a color for each pixel, in folders next to the images."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmplugin.data.layouts.partition import SPLIT_NAMES, by_lists
from mmplugin.data.layouts.tree import Tree
from mmplugin.data.splits import map_in_threads
from mmplugin.errors import UserError
from mmplugin.image_files import MOST_MASK_PIXELS, UNREADABLE, open_image
from mmplugin.text import some

IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'JPEGImages')
MASK_FOLDERS = ('annotations', 'annotation', 'annots', 'annot', 'labels', 'label', 'masks', 'mask', 'SegmentationClass')
LISTS = 'imagesets/segmentation'
MOST_VALUES = 4096  # a mask with more colors is a photograph, or was saved as JPEG
LOSSY = ('.jpg', '.jpeg', '.webp')


@dataclass
class MaskFolder:
    """The images and masks of a split.

    Args:
        images: Folder of the images, relative to the root.
        masks: Folder of the masks.
        image_suffix: What follows the name of an image; empty if the images have several suffixes.
        mask_suffix: What follows that name in the name of a mask.
        names: Names of all images, without suffix.
        paths: Mask by name, relative to the root.
    """

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    names: list[str]
    paths: dict[str, str]


@dataclass
class Counts:
    """What all masks contain.

    Args:
        pixels: Number of pixels by value.
        masks: Number of masks by value.
        color: Whether the values are colors.
        plain: Whether mmseg reads the same values from all files.
        problems: Files that cannot be read, and why.
    """

    pixels: Counter = field(default_factory=Counter)
    masks: Counter = field(default_factory=Counter)
    color: bool = False
    plain: bool = True
    problems: list[str] = field(default_factory=list)


def find(tree: Tree) -> dict[str, MaskFolder]:
    """Return the folders of images and masks by split; the split is empty if there is none."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in tree.images:
        parts = name.split('/')
        for depth in range(1, len(parts)):
            by_folder['/'.join(parts[:depth]).lower()].append(name)
    found = {}
    for split, words in SPLIT_NAMES.items():
        pairs = dict.fromkeys(
            pair for word in words for pair in _pairs(word) if all(path in by_folder for path in pair)
        )
        if pairs:
            found[split] = _choose(tree, by_folder, list(pairs))
    if not found:
        pairs = dict.fromkeys(pair for pair in _pairs('') if all(path in by_folder for path in pair))
        if pairs:
            found[''] = _choose(tree, by_folder, list(pairs))
    return found


def _pairs(word: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of folders in which images and masks of a split may be, in lower case."""
    for images in IMAGE_FOLDERS:
        for masks in MASK_FOLDERS:
            for pair in ((f'{images}/{word}', f'{masks}/{word}'), (f'{word}/{images}', f'{word}/{masks}')):
                yield tuple(path.strip('/').lower() for path in pair)  # type: ignore[misc]
    if word:
        for masks in MASK_FOLDERS:
            yield from ((word, f'{word}{separator}{masks.lower()}') for separator in ('', '_', '-'))


def _choose(tree: Tree, by_folder: dict[str, list[str]], pairs: list[tuple[str, str]]) -> MaskFolder:
    if len(pairs) > 1:
        listed = '; '.join(f'{images} with {masks}' for images, masks in pairs)
        raise UserError(f'{tree.root} has several folders of masks: {listed}. Move all but one out of the folder')
    images, masks = (by_folder[path] for path in pairs[0])
    image_folder, mask_folder = (
        '/'.join(files[0].split('/')[: path.count('/') + 1])
        for files, path in zip((images, masks), pairs[0], strict=True)
    )
    suffixes = {re.search(r'\.[^./]*$', name)[0] for name in images}  # type: ignore[index]
    suffix = suffixes.pop() if len(suffixes) == 1 else ''
    stems = {name[len(image_folder) + 1 :].rpartition('.')[0]: name for name in images}
    if len(stems) < len(images):
        twice = next(name for name in images if name not in stems.values())
        raise UserError(f'{tree.root / twice}: another image has the same name with another suffix; rename one')
    below = [name[len(mask_folder) + 1 :] for name in masks]
    mask_suffix = _mask_suffix(below, stems)
    paths = {name[: -len(mask_suffix)]: f'{mask_folder}/{name}' for name in below if name.endswith(mask_suffix)}
    if suffix:
        names = sorted(stems)
    else:
        names = sorted(name[len(image_folder) + 1 :] for name in images)
        paths = {name: paths[name.rpartition('.')[0]] for name in names if name.rpartition('.')[0] in paths}
    return MaskFolder(image_folder, mask_folder, suffix, mask_suffix, names, paths)


def _mask_suffix(masks: Iterable[str], stems: Iterable[str]) -> str:
    """Return what follows the name of the image in the name of most masks, such as ``.png`` or ``_L.png``."""
    known = set(stems)
    votes: Counter[str] = Counter()
    for mask in masks:
        end = mask.rfind('.')
        while end > 0 and mask[:end] not in known:
            end -= 1
        if end > 0:
            votes[mask[end:]] += 1
    return votes.most_common(1)[0][0] if votes else '.png'


def lists(tree: Tree) -> dict[str, str]:
    """Return the split by name of the image, from VOC's lists; empty if there are none."""
    found: dict[str, list[str]] = {}
    for split, words in SPLIT_NAMES.items():
        for name in tree.select(*(f'{LISTS}/{word}.txt' for word in words)):
            found.setdefault(split, []).extend(line.strip() for line in tree.text(name).splitlines() if line.strip())
    return by_lists(found)


@dataclass
class Mask:
    """The content of a mask.

    Args:
        values: One number per pixel, (height, width); a color is 65536 r + 256 g + b.
        color: Whether the values are colors.
        plain: Whether mmseg reads the same values, i.e. the file has one 8-bit channel.
    """

    values: np.ndarray
    color: bool
    plain: bool


def read_mask(path: Path, color: bool | None = None) -> Mask:
    """Read a mask.

    Args:
        path: The file.
        color: Read colors (True), also those of a palette, or numbers (False). None: numbers if there is one channel,
            or if all channels are equal.
    """
    try:
        with open_image(path, MOST_MASK_PIXELS) as opened:
            plain = opened.mode in ('L', 'P')
            image: Image.Image = opened
            if opened.mode in ('RGBA', 'LA', 'PA'):  # opacity is not a label
                image = opened.convert('L' if opened.mode == 'LA' else 'RGB')
            elif opened.mode == 'P' and color:
                image = opened.convert('RGB')
            pixels = np.asarray(image)
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is not a readable mask ({error}); replace it') from error
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        if color or not (pixels[..., :1] == pixels[..., 1:]).all():
            return Mask(pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32), True, plain)
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype.kind not in 'bui':
        raise UserError(f'{path} has mode {image.mode}, not one number or one RGB color per pixel; save it as PNG')
    values = pixels.astype(np.int32, copy=False)
    return Mask(values * 0x10101, True, plain) if color else Mask(values, False, plain)


def count(paths: list[Path], color: bool | None = None) -> Counts:
    """Count the values of all masks. A sample would miss rare classes, and the numbering depends on each of them."""

    def attempt(path: Path) -> tuple[Mask, list[int], list[int]] | UserError:
        try:
            mask = read_mask(path, color)
        except UserError as error:
            return error
        flat, mask.values = mask.values.ravel(), np.empty(0)  # the pixels are not needed any more
        starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1 if flat.size else 0))  # few runs of equal pixels
        values, inverse = np.unique(flat[starts], return_inverse=True)
        pixels = np.bincount(inverse.ravel(), np.diff(starts, append=flat.size), len(values))
        return mask, values.tolist(), pixels.astype(np.int64).tolist()

    result = Counts()
    paths_by_color: dict[bool, list[Path]] = {True: [], False: []}
    for path, found in zip(paths, map_in_threads(attempt, paths, 'reading masks'), strict=True):
        if isinstance(found, UserError):
            result.problems.append(str(found))
            continue
        mask, values, pixels = found
        paths_by_color[mask.color].append(path)
        result.plain &= mask.plain
        for value, number in zip(values, pixels, strict=True):
            result.pixels[value] += number
            result.masks[value] += 1
        if len(result.pixels) > MOST_VALUES:
            lossy = f' {path.suffix} changes values: save masks as PNG.' if path.suffix.lower() in LOSSY else ''
            raise UserError(f'{path.parent} has more than {MOST_VALUES} different values: these are not masks.{lossy}')
    if paths_by_color[True] and paths_by_color[False]:
        if color is None:  # a mask of only black, gray or white pixels among colored ones
            return count(paths, color=True)
        raise UserError(f'some masks have colors ({some(paths_by_color[True])}), others numbers')
    result.color = bool(paths_by_color[True])
    return result
