"""``--data-root FOLDER``: adapt a config to the user's data, including heads and evaluators."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmplugin.config_edits import evaluator_list, is_segmentation, set_annotations_, set_classes_
from mmplugin.data.converted import FOLDER, to_coco
from mmplugin.data.json_text import parse_json
from mmplugin.data.layouts import LAYOUTS, coco, find_layout, require_files
from mmplugin.data.layouts.partition import SPLIT_NAMES
from mmplugin.data.layouts.records import require_one_spelling
from mmplugin.data.layouts.tree import RESULTS, Tree, read_text
from mmplugin.engine.data_options import MASKS, DataOptions
from mmplugin.engine.own_masks import report, segmentation_
from mmplugin.errors import UserError
from mmplugin.palette import palette


def apply_(
    cfg: Config,
    root: Path,
    classes: Sequence[str] | None,
    options: DataOptions | None = None,
    work_dir: Path | None = None,
) -> None:
    """Adapt a detection or segmentation config to the data in a folder.

    Args:
        cfg: The config.
        root: The user's folder, in which nothing is written.
        classes: Class names; default: those in the annotations.
        options: How to read the data.
        work_dir: Folder for converted data.
    """
    if not root.is_dir():
        raise UserError(f'--data-root {root} is not a folder; name the folder with images and annotations')
    classes = [name.strip() for name in classes] if classes else None
    options, work_dir = options or DataOptions(), work_dir or Path(RESULTS)
    tree = Tree(root, work_dir)
    if is_segmentation(cfg):
        segmentation_(cfg, tree, classes, options, work_dir / FOLDER)
        return
    for name in ('label_table', 'unlabelled', 'background'):
        if getattr(options, name):
            raise UserError(f'--{name.replace("_", "-")} is only for segmentation masks; omit it for detection')
    if options.layout == MASKS:
        raise UserError(f'--layout {MASKS} is only for segmentation; for detection: {", ".join(LAYOUTS)}')
    _detection_(cfg, tree, classes, options, work_dir / FOLDER)


def _detection_(cfg: Config, tree: Tree, classes: Sequence[str] | None, options: DataOptions, folder: Path) -> None:
    layout = options.layout or find_layout(tree)
    if layout is None:
        raise UserError(
            f'{tree.root} has no annotations in a known layout ({", ".join(LAYOUTS)}): for COCO tried '
            f'{", ".join(coco.patterns("train"))}; for the others no .xml, .txt or .json file fits. See docs/data.md'
        )
    require_files(tree, layout)
    files = coco.by_split(tree) if layout == 'coco' else {}
    if {'train', 'val'} <= files.keys():
        classes, splits = _use_coco_files_(cfg, tree.root, files, classes), list(files)
    else:
        converted = to_coco(tree, layout, folder, classes, options.val_share)
        report(tree.root, LAYOUTS[layout].title, converted)
        classes, splits = converted.classes, converted.splits
        for name, loader in _loaders(cfg, converted.splits):
            loader.dataset.update(
                data_root=str(tree.root), ann_file=str(converted.folder / f'{name}.json'), data_prefix=dict(img='')
            )
    _set_evaluators_(cfg, splits)
    set_classes_(cfg, classes, palette(len(classes)))


def _loaders(cfg: Config, splits: Sequence[str]) -> list[tuple[str, Config]]:
    """Return the dataloaders with their splits; the command ``test`` measures the test set if there is one."""
    test = 'test' if 'test' in splits else 'val'
    return [('train', cfg.train_dataloader), ('val', cfg.val_dataloader), (test, cfg.test_dataloader)]


def _set_evaluators_(cfg: Config, splits: Sequence[str]) -> None:
    """Let each evaluator compare with the annotations of its own images."""
    datasets = cfg.val_dataloader.dataset, cfg.test_dataloader.dataset
    val, test = (Path(dataset.data_root) / dataset.ann_file for dataset in datasets)
    set_annotations_(cfg, val)
    if 'test' in splits:
        cfg.test_evaluator = [dict(evaluator) for evaluator in evaluator_list(cfg.test_evaluator)]
        for evaluator in cfg.test_evaluator:
            if 'ann_file' in evaluator:
                evaluator['ann_file'] = str(test)


def _use_coco_files_(cfg: Config, root: Path, files: dict[str, str], classes: Sequence[str] | None) -> list[str]:
    """Use annotation files where they are; return the classes in their order, by which mmdet numbers labels."""
    contents = {split: _read_coco(root / path) for split, path in files.items()}
    if 'test' in files and not contents['test'].get('annotations'):
        del files['test']  # images without annotations, as in COCO's own test set
    orders = {split: _in_file_order(root / files[split], contents[split], classes) for split in files}
    for split, order in orders.items():
        if order != orders['train']:
            raise UserError(
                f'{root / files[split]} lists categories as {", ".join(order)}, the training file as '
                f'{", ".join(orders["train"])}; labels would have the wrong names. Write both in the same order'
            )
    require_one_spelling(dict.fromkeys(orders['train'], 0))
    for split, loader in _loaders(cfg, list(files)):
        images = _image_folder(root, files[split], split, contents[split])
        loader.dataset.update(data_root=str(root), ann_file=files[split], data_prefix=dict(img=images))
    return orders['train']


def _read_coco(path: Path) -> dict:
    try:
        content = parse_json(read_text(path))
        if not all(isinstance(category['name'], str) for category in content['categories']):
            raise TypeError('a category name is not a text')
        return content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is not a COCO file: {error!r}. It needs images, annotations and categories') from error


def _in_file_order(path: Path, content: dict, classes: Sequence[str] | None) -> list[str]:
    """Return the classes, or all categories, in the order of the file."""
    categories = [category['name'] for category in content['categories']]
    unknown = [name for name in classes or () if name not in categories]
    if unknown:
        raise UserError(
            f'{path} has no category {", ".join(map(repr, unknown))}; allowed in --classes: {", ".join(categories)}'
        )
    return [name for name in categories if not classes or name in classes]


def _image_folder(root: Path, annotations: str, split: str, content: dict) -> str:
    """Return the folder that the file names in the annotations are relative to."""
    try:
        name = os.fspath(content['images'][0]['file_name'])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f'{root / annotations} lists no images; add them, or name another file') from error
    tried = [pattern.format(word) for pattern in coco.IMAGES for word in SPLIT_NAMES[split]]
    for folder in dict.fromkeys([*tried, str(Path(annotations).parent)]):
        if os.path.isfile(os.path.join(root, folder, name)):  # unlike Path.is_file, also for names that are too long
            return '' if folder == '.' else f'{folder}/'
    raise UserError(f'{root / annotations} lists {name}, which is in none of {", ".join(dict.fromkeys(tried))}')
