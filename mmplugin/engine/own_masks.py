"""Adapt a segmentation config to the user's masks, or to polygons, from which masks are drawn."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmplugin.config_edits import set_classes_
from mmplugin.data.converted import OUTSIDE, Converted, count_masks, draw_masks, renumber, write_lists
from mmplugin.data.layouts import LAYOUTS, find_layout, masks, require_files
from mmplugin.data.layouts.label_table import LabelTable, find_table, read_table
from mmplugin.data.layouts.masks import Counts, MaskFolder
from mmplugin.data.layouts.numbering import (
    IGNORED,
    AmbiguousError,
    Numbering,
    drop_classes,
    number_classes,
    number_explicitly,
    show_value,
    suggestions,
)
from mmplugin.data.layouts.partition import arrange
from mmplugin.data.layouts.tree import Tree
from mmplugin.engine.data_options import MASKS, DataOptions
from mmplugin.errors import UserError
from mmplugin.palette import palette
from mmplugin.text import printable, some

SHOWN = 40  # values that a table lists


@dataclass
class Source:
    """Where the images and masks of a split are.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: What follows the name of an image.
        mask_suffix: What follows that name in the name of a mask.
        listing: File with the names; empty for all images in the folder.
    """

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    listing: str = ''


def segmentation_(cfg: Config, tree: Tree, classes: list[str] | None, options: DataOptions, folder: Path) -> None:
    """Set datasets, classes and heads.

    Args:
        cfg: The config.
        tree: The user's folder.
        classes: Class names in the order of their values, or as ``name=value``.
        options: How to read the data.
        folder: Folder for converted data.
    """
    if options.background and str(OUTSIDE) in options.unlabelled:
        raise UserError(f'--background names the value {OUTSIDE}, which --unlabelled {OUTSIDE} excludes; omit one')
    folders = masks.find(tree) if options.layout in (None, MASKS) else {}
    layout = options.layout if options.layout != MASKS else None
    if options.layout is None:
        layout = find_layout(tree, ('coco', 'yolo', 'labelme'))
        if layout and folders:
            raise UserError(
                f'{tree.root} has masks and annotations in the layout {LAYOUTS[layout].title}. Choose with --layout '
                f'{MASKS} or --layout {layout}'
            )
    if layout:
        require_files(tree, layout)
        sources, numbering = _from_polygons(tree, layout, classes, options, folder)
    elif folders:
        sources, numbering = _from_masks(tree, folders, classes, options, folder)
    else:
        raise UserError(_nothing_found(tree))
    if len(numbering.classes) == 1:
        raise UserError(
            f'the only class is {numbering.classes[0]!r}: a model would predict it everywhere. Name the rest, too: '
            '--background NAME'
        )
    if len(numbering.classes) > IGNORED:
        raise UserError(f'{len(numbering.classes)} classes; masks have at most {IGNORED}. Choose some with --classes')
    test = 'test' if 'test' in sources else 'val'
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader), (test, cfg.test_dataloader)):
        source = sources[split]
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(tree.root),
            data_prefix=dict(img_path=source.images, seg_map_path=source.masks),
            img_suffix=source.image_suffix,
            seg_map_suffix=source.mask_suffix,
            ann_file=source.listing,
            reduce_zero_label=numbering.reduces_zero,
        )
    set_classes_(cfg, numbering.classes, palette(len(numbering.classes)))


def report(root: Path, title: str, converted: Converted) -> None:
    """Say what was read, and what was found and not used."""
    what = f'{title}; classes {some(converted.classes, 8)}; {converted.summary}'
    print_log(printable(f'{root}: {what}. Lists: {converted.folder}'), 'current')
    for warning in converted.warnings:
        print_log(printable(f'{root}: {warning}'), 'current', logging.WARNING)


def _nothing_found(tree: Tree) -> str:
    image_folders, mask_folders = (', '.join(names) for names in (masks.IMAGE_FOLDERS, masks.MASK_FOLDERS))
    return (
        f'{tree.root} has no images with masks: tried images/train with annotations/train, train/images with '
        f'train/masks, train with trainannot, images with masks, and the like. Rename your folders; names of image '
        f'folders: {image_folders}; of mask folders: {mask_folders}; of splits: train, val, test'
    )


def _from_masks(
    tree: Tree, folders: dict[str, MaskFolder], classes: list[str] | None, options: DataOptions, folder: Path
) -> tuple[dict[str, Source], Numbering]:
    table = read_table(options.label_table) if options.label_table else None
    counts = count_masks(tree, folder, folders, color=True if table and table.colors else None)
    if counts.problems:
        raise UserError('\n'.join(counts.problems[:SHOWN]))
    if counts.color and table is None and (path := find_table(tree)):
        table = read_table(path)
        print_log(f'The colors of the masks are named in {path}', 'current')
    numbering = _number(tree, counts, table, classes, options)
    print_log(printable(_understood(tree, counts, numbering), keep='\n'), 'current')
    converted: dict[str, Path] = {}
    same_suffix = all(found.image_suffix for found in folders.values())
    if counts.color or not counts.plain or not same_suffix or not (numbering.is_identity or numbering.reduces_zero):
        target, converted = renumber(tree, folder, folders, numbering, counts.color)
        labels = {label: label for label in numbering.labels.values()}
        numbering = Numbering(numbering.classes, labels)
        print_log(f'Masks with these labels: {target}', 'current')

    def source(origin: str, listing: Path | str) -> Source:
        found = folders[origin]
        if origin in converted:
            return Source(found.images, str(converted[origin]), found.image_suffix, '.png', str(listing))
        return Source(found.images, found.masks, found.image_suffix, found.mask_suffix, str(listing))

    if {'train', 'val'} <= folders.keys() and same_suffix:
        return {split: source(split, '') for split in folders}, numbering
    listed = masks.lists(tree) if '' in folders else {}
    items = [(origin, name) for origin, found in folders.items() for name in found.names]
    splits, summary = arrange(
        items,
        lambda item: listed.get(item[1], '') if listed else item[0],
        lambda item: '/'.join(item),
        options.val_share,
    )
    listings = write_lists(folder, {split: [name for _, name in found] for split, found in splits.items()})
    print_log(f'{tree.root}: {summary}. Lists: {listings["train"].parent}', 'current')
    return {split: source(found[0][0], listings[split]) for split, found in splits.items()}, numbering


def _from_polygons(
    tree: Tree, layout: str, classes: list[str] | None, options: DataOptions, folder: Path
) -> tuple[dict[str, Source], Numbering]:
    ignored = [word for word in options.unlabelled if word not in (str(OUTSIDE), str(IGNORED))]
    converted, pixels = draw_masks(tree, layout, folder, classes, ignored, options.val_share)
    report(tree.root, LAYOUTS[layout].title, converted)
    outside = pixels.pop(OUTSIDE, 0)
    names = converted.classes
    if options.background in names:
        raise UserError(
            f'--background {options.background}: this is also a class of the annotations; choose another name'
        )
    if outside and not options.background and str(OUTSIDE) not in options.unlabelled:
        raise UserError(
            f'{tree.root}: {outside / (outside + pixels.total()):.1%} of all pixels are outside all outlines. Are they '
            f'a class?\n  --background NAME   yes, of this name\n  --unlabelled {OUTSIDE}      no: they count neither '
            'in training nor in evaluation'
        )
    first = 0 if options.background else 1
    classes = [*([options.background] if options.background else []), *names]
    labels = {OUTSIDE: 0 if options.background else IGNORED} | {i + 1: i + 1 - first for i in range(len(names))}
    numbering = Numbering(tuple(classes), labels | {IGNORED: IGNORED})
    images, drawn = str(tree.root.resolve()), str(converted.folder / 'masks')
    return {
        split: Source(images, drawn, '', '.png', str(converted.folder / f'{split}.txt')) for split in converted.splits
    }, numbering


def _number(
    tree: Tree, counts: Counts, table: LabelTable | None, classes: list[str] | None, options: DataOptions
) -> Numbering:
    """Decide which value is which class, from what the user says and what all masks contain."""
    seen = sorted(counts.pixels)
    values = [value for word in options.unlabelled if (value := _value(word)) is not None]
    dropped = [word for word in options.unlabelled if _value(word) is None]
    explicit = _explicit(table, classes, options, counts.color)
    names = list(dict.fromkeys(explicit.values())) if explicit is not None else list(classes or ())
    if counts.color and explicit is None:
        raise UserError(
            f'the masks in {tree.root} have colors. Name them with --label-table FILE, lines of `name r g b`\n'
            + _table(counts)
        )
    if not names:
        raise UserError(
            f'--data-root for masks needs --classes: the names in the order of their values\n{_table(counts)}'
        )
    if table is not None:  # the classes of the table that --classes does not name
        values += [value for value, name in table.values.items() if name not in names]
    unknown = [name for name in dropped if name not in names]
    if unknown:
        raise UserError(
            f'--unlabelled {some(unknown)}: neither a number, a color nor one of the classes {some(names, 12)}'
        )
    if options.background and explicit is None:
        if counts.pixels and 0 not in counts.pixels:
            raise UserError(f'--background names the value 0, which no mask has\n{_table(counts)}')
        names = [options.background, *names]
    if len(set(names)) < len(names):
        raise UserError(f'--classes: a name occurs twice in {", ".join(names)}')
    try:
        if explicit is not None:
            numbering = number_explicitly(seen, explicit, values, counts.color)
        else:
            numbering = number_classes(seen, names, values)
    except AmbiguousError as error:
        raise UserError(_ask(tree, counts, error, names, explicit, options)) from error
    return drop_classes(numbering, dropped)


def _value(word: str) -> int | None:
    """Return a number, or a color such as ``#ff8000``, as a value; None for a name."""
    if word.isdigit():
        return int(word)
    if len(word) == 7 and word[0] == '#':
        try:
            return int(word[1:], 16)
        except ValueError:
            return None
    return None


def _explicit(
    table: LabelTable | None, classes: list[str] | None, options: DataOptions, color: bool
) -> dict[int, str] | None:
    """Return the class name by value if a table or ``name=value`` states it, in the order of the labels."""
    if table is not None:
        if table.colors != color:
            kinds = ('colors', 'numbers') if table.colors else ('numbers', 'colors')
            raise UserError(f'{table.path} names {kinds[0]}, but the masks have {kinds[1]}')
        stated = table.values
        unknown = [name for name in classes or () if name not in stated.values()]
        if unknown:
            raise UserError(f'--classes: {table.path} does not name {", ".join(map(repr, unknown))}')
        order = classes or list(dict.fromkeys(stated.values()))
    elif classes and all('=' in name for name in classes):
        pairs = [name.rpartition('=') for name in classes]
        wrong = [name for name, (_, _, value) in zip(classes, pairs, strict=True) if not value.strip().isdigit()]
        if wrong:
            raise UserError(f'--classes {some(wrong)}: expected name=number')
        stated = {int(value): name.strip() for name, _, value in pairs}
        if len(stated) < len(pairs):
            raise UserError('--classes: a number occurs twice')
        order = list(dict.fromkeys(stated.values()))
    else:
        return None
    if options.background:
        raise UserError('--background is for masks without a table and for polygons; name the background in the table')
    return {value: name for label in order for value, name in stated.items() if name == label}


def _rows(counts: Counts, names: Mapping[int, str]) -> str:
    total = counts.pixels.total()
    lines = [f'{"value":>9} {"pixels":>9} {"masks":>7}']
    for value in sorted(counts.pixels)[:SHOWN]:
        share = f'{counts.pixels[value] / total:.2%}'
        name = names.get(value, '')
        lines.append(f'{show_value(value, counts.color):>9} {share:>9} {counts.masks[value]:>7}  {name}'.rstrip())
    if len(counts.pixels) > SHOWN:
        lines.append(f'  ... and {len(counts.pixels) - SHOWN} more values')
    return '\n'.join(lines)


def _table(counts: Counts) -> str:
    return _rows(counts, {})


def _understood(tree: Tree, counts: Counts, numbering: Numbering) -> str:
    """Say which value is which class."""
    names = {v: 'unlabelled' if i == IGNORED else f'{i} {numbering.classes[i]}' for v, i in numbering.labels.items()}
    absent = [name for i, name in enumerate(numbering.classes) if i not in numbering.labels.values()]
    text = f'{tree.root}: values of all masks, and the label and class of each\n{_rows(counts, names)}'
    return text + (f'\nClasses that no mask has: {some(absent, 8)}' if absent else '')


def _ask(
    tree: Tree,
    counts: Counts,
    error: AmbiguousError,
    names: list[str],
    explicit: Mapping[int, str] | None,
    options: DataOptions,
) -> str:
    """Return the message for masks whose numbering is not certain: the values, and the options that settle it."""
    known = explicit or {}
    if explicit is None:
        answers = suggestions(sorted(counts.pixels), names[1:] if options.background else names)
    else:
        missing = [value for value in sorted(counts.pixels) if value not in explicit]
        answers = [f'--unlabelled {",".join(show_value(value, counts.color) for value in missing[:SHOWN])}']
        answers.append('or name these values in the table or in --classes')
    lines = '\n'.join(f'  {answer}' for answer in answers)
    problem = f'the classes of the masks in {tree.root} are not certain: {error}'
    return f'{problem}\n{_rows(counts, known)}\nSay it with\n{lines}'
