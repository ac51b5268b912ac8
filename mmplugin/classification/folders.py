"""Images in a folder per class, as ImageNet has them."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmplugin.data.layouts.partition import SPLIT_NAMES, VAL_SHARE, draw
from mmplugin.data.layouts.tree import read_text
from mmplugin.errors import UserError
from mmplugin.text import some

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
IMAGENET_DATA = 'ILSVRC/Data/CLS-LOC'  # in the archive of the challenge
VAL_LISTS = ('val.txt', 'meta/val.txt', 'LOC_val_solution.csv')  # labels of validation images in one folder
EXPECTED = (
    'expected ROOT/train/CLASS/image.jpg and ROOT/val/CLASS/image.jpg; or ROOT/CLASS/image.jpg, of which a part is '
    f'drawn for validation; or ImageNet with its validation images in one folder and {", ".join(VAL_LISTS)}'
)


@dataclass
class Listing:
    """The images of a data set.

    Args:
        classes: Class names in the order of their labels, which is that of their names.
        images: (path relative to the root, label) of each split.
        summary: Splits and how they came about, in one line.
    """

    classes: tuple[str, ...]
    images: dict[str, list[tuple[str, int]]]
    summary: str


def read_folders(root: Path, classes: Sequence[str] | None = None, val_share: float = VAL_SHARE) -> Listing:
    """List the images of a folder.

    Args:
        root: The folder.
        classes: Classes to use; default: all.
        val_share: Share of the images to draw for validation if there are no others.
    """
    if not root.is_dir():
        raise UserError(f'--data-root {root} is not a folder; {EXPECTED}')
    base = root / IMAGENET_DATA if (root / IMAGENET_DATA).is_dir() else root
    parts = {split: folder for split in SPLIT_NAMES if (folder := _folder_of(base, split)) is not None}
    if 'train' not in parts:
        if parts:
            raise UserError(f'{base} has {", ".join(path.name for path in parts.values())}, but no train; {EXPECTED}')
        return _drawn(root, _by_class(base, root, classes), val_share)
    training = _by_class(parts['train'], root, classes)
    names = tuple(training)
    if 'val' not in parts:
        return _drawn(root, training, val_share)
    images = {'train': _labelled(training)}
    for split in [split for split in ('val', 'test') if split in parts]:
        found = _evaluated(parts[split], root, split, names, classes)
        if found:
            images[split] = found
    counts = ', '.join(f'{len(found):,} {split}' for split, found in images.items())
    return Listing(names, images, f'{len(names):,} classes; images: {counts}')


def write_lists(listing: Listing, folder: Path) -> dict[str, Path]:
    """Write a file per split with a path and a label in each line, as mmpretrain reads them; return their paths."""
    from mmplugin.files import atomic_write

    paths = {}
    for split, images in listing.images.items():
        paths[split] = (folder / f'{split}.txt').resolve()
        with atomic_write(paths[split]) as draft, draft.open('w', encoding='utf-8', errors='surrogateescape') as file:
            file.writelines(f'{path} {label}\n' for path, label in images)
    return paths


def _folder_of(base: Path, split: str) -> Path | None:
    return next((base / word for word in SPLIT_NAMES[split] if (base / word).is_dir()), None)


def _by_class(folder: Path, root: Path, classes: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the images of every class, in the order of the names, or say what is wrong with the folder."""
    found = {entry.name: list(_images(Path(entry.path), root)) for entry in _subfolders(folder)}
    if unknown := [name for name in classes or () if name not in found]:
        raise UserError(f'{folder} has no folder {some(unknown)}; its folders: {some(sorted(found)) or "none"}')
    found = {name: found[name] for name in sorted(found) if not classes or name in classes}
    if not any(found.values()):
        loose = next(_images(folder, root, deep=False), None)
        hint = f'{loose} lies outside the folders of classes; ' if loose else ''
        raise UserError(f'{folder} has no folders with images; {hint}{EXPECTED}')
    if empty := [name for name, images in found.items() if not images]:
        raise UserError(
            f'{len(empty)} folders in {folder} have no images ({some(empty)}); remove them, or add images that end in '
            f'{" ".join(EXTENSIONS)}'
        )
    if len(found) < 2:
        raise UserError(f'{folder} has one class, {next(iter(found))}; classification needs two. {EXPECTED}')
    return found


def _subfolders(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith('.')]


def _images(folder: Path, root: Path, deep: bool = True) -> Iterator[str]:
    """Yield the images of a folder, relative to the root, in the order of their paths."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith('.'):
                yield Path(path, name).relative_to(root).as_posix()
        if not deep:
            return


def _labelled(images: Mapping[str, Iterable[str]]) -> list[tuple[str, int]]:
    return [(path, label) for label, paths in enumerate(images.values()) for path in paths]


def _drawn(root: Path, images: Mapping[str, list[str]], share: float) -> Listing:
    """Draw validation images in every class."""
    chosen: set[str] = set()
    for name, paths in images.items():
        if len(paths) < 2:
            raise UserError(f'{root}: class {name} has {len(paths)} image; training and validation need one each')
        chosen |= draw(paths, share)
    splits: dict[str, list[tuple[str, int]]] = {'train': [], 'val': []}
    for path, label in _labelled(images):
        splits['val' if path in chosen else 'train'].append((path, label))
    summary = (
        f'{len(images):,} classes; {len(splits["train"]):,} training images, and {len(splits["val"]):,} drawn from '
        'them for validation'
    )
    return Listing(tuple(images), splits, summary)


def _evaluated(
    folder: Path, root: Path, split: str, names: tuple[str, ...], classes: Sequence[str] | None
) -> list[tuple[str, int]]:
    """Return the images of a validation or test set, which need not have all classes of the training set."""
    if _subfolders(folder):
        found = {entry.name: list(_images(Path(entry.path), root)) for entry in _subfolders(folder)}
        found = {name: found[name] for name in sorted(found) if found[name] and (not classes or name in classes)}
        if unknown := [name for name in found if name not in names]:
            raise UserError(
                f'{folder} has classes without training images: {some(unknown)}; name the folders alike in both, or '
                'choose with --classes'
            )
        labels = {name: label for label, name in enumerate(names)}
        if found or split == 'val':
            return [(path, labels[name]) for name, paths in found.items() for path in paths] or _none(folder)
    if split == 'test':
        return []  # without labels, as ImageNet's
    return _from_list(folder, root, names)


def _none(folder: Path) -> list:
    raise UserError(f'{folder} has no images; {EXPECTED}')


def _from_list(folder: Path, root: Path, names: tuple[str, ...]) -> list[tuple[str, int]]:
    path = next((root / name for name in VAL_LISTS if (root / name).is_file()), None)
    if path is None:
        raise UserError(f'{folder} has no folders of classes, and {root} none of {", ".join(VAL_LISTS)}; {EXPECTED}')
    present = {Path(image).name: image for image in _images(folder, root)}
    labels = {name: label for label, name in enumerate(names)} | {str(label): label for label in range(len(names))}
    found, text = [], read_text(path)
    rows = csv.reader(text.splitlines()[1:]) if path.suffix == '.csv' else (line.split() for line in text.splitlines())
    for row in rows:
        if len(row) < 2 or not row[1].split():
            continue
        name, label = Path(row[0]).name, row[1].split()[0]
        name = name if path.suffix != '.csv' else f'{name}.JPEG'
        if label not in labels:
            raise UserError(f'{path}: {name} has the class {label!r}; the folders of the training set: {some(names)}')
        if name in present:
            found.append((present[name], labels[label]))
    if not found:
        raise UserError(f'{path} lists none of the {len(present)} images in {folder}; expected lines: NAME CLASS')
    return found
