"""Check of the images of a classification config."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmplugin.data.splits import map_in_threads, sample
from mmplugin.errors import UserError
from mmplugin.findings import ERROR, Finding
from mmplugin.image_files import UNREADABLE, open_image

MOST_FINDINGS = 20


def check_folders(cfg: Config, fast: bool = False) -> list[Finding]:
    """Check that images and classes are there, and that images can be read.

    Args:
        cfg: The config.
        fast: Open only a few images.
    """
    findings: list[Finding] = []
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            findings += _check_split(cfg, f'{split}_dataloader.dataset', loader.dataset, fast)
    return findings


def _check_split(cfg: Config, key: str, dataset: Any, fast: bool) -> list[Finding]:
    root = Path(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or ''
    folder = root / (prefix if isinstance(prefix, str) else prefix.get('img_path', ''))
    if not folder.is_dir():
        fix = f'set {key}.data_root, or use your own data: --data-root FOLDER, or the built-in set: --mini'
        return [Finding(ERROR, f'the folder of the images does not exist: {folder}', key, fix)]
    if not dataset.get('ann_file'):
        classes = sum(1 for entry in folder.iterdir() if entry.is_dir())
        expected = cfg.model.head.num_classes
        if classes == expected:
            return []
        fix = 'name the folder above train and val with --data-root: the classes are those of its folders'
        return [Finding(ERROR, f'{folder} has {classes} folders, the head {expected} classes', key, fix)]
    lines = Path(root, dataset.ann_file).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
    paths = [folder / line.rpartition(' ')[0] for line in lines if line]
    problems = map_in_threads(_problem, sample(paths) if fast else paths, f'Reading images of {key}')
    found = [problem for problem in problems if problem is not None]
    fix = 'remove the file, or save the image again'
    return [Finding(ERROR, problem, key, fix) for problem in found[:MOST_FINDINGS]]


def _problem(path: Path) -> str | None:
    """Return what is wrong with an image."""
    try:
        with open_image(path) as image:
            image.load()
    except UserError as error:
        return str(error)
    except UNREADABLE as error:
        return f'{path} cannot be read as an image: {error}'
    return None
