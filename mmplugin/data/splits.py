"""The datasets that a config names, and what all checks of data share."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.progress import track

from mmplugin.config_edits import import_scope
from mmplugin.findings import ERROR, WARNING, Finding
from mmplugin.text import some

SAMPLE = 16  # files per split that the fast check opens
PROGRESS_BAR_FROM = 500  # files


@dataclass
class Split:
    """One dataset of a config, without wrappers such as ``RepeatDataset``.

    Args:
        name: ``train``, ``val`` or ``test``.
        key: Config key of the dataset.
        config: Settings of the dataset.
        dataset_class: Class that reads it, None if the registry does not know it.
        classes: Class names of the config, else of the dataset class. A string is a mistake that the checks report.
        images: Size (width, height) by absolute path, if known. The checks fill it.
    """

    name: str
    key: str
    config: dict
    dataset_class: type | None
    classes: Any
    images: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str) -> Any:
        """Return an argument of the dataset: from the config, else the default of its class or of a parent class."""
        if name in self.config:
            return self.config[name]
        for parent in getattr(self.dataset_class, '__mro__', ()):
            argument = inspect.signature(parent.__init__).parameters.get(name)
            if argument is not None and argument.default is not inspect.Parameter.empty:
                return argument.default
        return None

    def path(self, value: str | None) -> Path:
        """Join a path to ``data_root`` as mmengine does."""
        return Path(os.path.join(self.config.get('data_root') or '', value or ''))

    @property
    def remote(self) -> bool:
        """Whether the files are behind a storage backend or a URL."""
        parts = [self.config.get('data_root'), self.config.get('ann_file')]
        return bool(self.config.get('backend_args')) or any('://' in str(part) for part in parts)

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        """Class names that the dataset class defines."""
        return getattr(self.dataset_class, 'METAINFO', {}).get('classes')


def _innermost(dataset: dict, key: str) -> Iterator[tuple[dict, str]]:
    if 'dataset' in dataset:
        yield from _innermost(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for index, inner in enumerate(dataset['datasets']):
            yield from _innermost(inner, f'{key}.datasets.{index}')
    else:
        yield dataset, key


def splits(cfg: Config) -> list[Split]:
    """Return the innermost datasets of all dataloaders."""
    import_scope(cfg, 'datasets')
    registry = import_scope(cfg, 'registry').DATASETS
    found = []
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if not loader or not loader.get('dataset'):
            continue
        for config, key in _innermost(loader['dataset'], f'{name}_dataloader.dataset'):
            kind = config.get('type')
            dataset_class = registry.get(kind) if isinstance(kind, str) else kind
            # A plain dict: attribute access of a Config raises for missing keys.
            plain = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
            classes = (plain.get('metainfo') or {}).get('classes')
            classes = classes or getattr(dataset_class, 'METAINFO', {}).get('classes')
            classes = classes if classes is None or isinstance(classes, str) else tuple(classes)
            found.append(Split(name, key, plain, dataset_class, classes))
    return found


def distinct(found: Iterable[Split]) -> Iterator[Split]:
    """Yield one split with class names for each set of files; the others share its ``images``."""
    first: dict[tuple, Split] = {}
    for split in found:
        if not isinstance(split.classes, tuple):
            continue
        files = (split.config.get('ann_file'), str(split.option('data_prefix')), split.config.get('data_root'))
        if files in first:
            split.images = first[files].images
        else:
            first[files] = split
            yield split


def _heads(node: Any, key: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == 'num_classes' and isinstance(value, int):
                yield f'{key}.{name}', value
            elif name in ('bbox_head', 'mask_head') and key.endswith('roi_head') and isinstance(value, dict):
                yield from _heads({'num_classes': 80, **value}, f'{key}.{name}')  # 80 is mmdet's default
            elif name != 'backbone':
                yield from _heads(value, f'{key}.{name}')
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _heads(value, f'{key}.{index}')


def heads(cfg: Config) -> dict[str, int]:
    """Return the number of classes of every head by config key."""
    return dict(_heads(cfg.get('model') or {}, 'model'))


def check_classes(cfg: Config, split: Split) -> list[Finding]:
    """Check that the class names are a tuple, and that every head has as many classes."""
    key = f'{split.key}.metainfo.classes'
    if split.classes is None:
        return [Finding(ERROR, 'no class names', key, "metainfo=dict(classes=('first', 'second'))")]
    if isinstance(split.classes, str):
        problem = f'classes is a string, {split.classes!r}: it is read as {len(split.classes)} classes of one letter'
        return [Finding(ERROR, problem, key, f'metainfo=dict(classes=({split.classes!r},))  # note the comma')]
    count = len(split.classes)
    return [
        Finding(ERROR, f'the head has {of_head} classes, the {split.name} set has {count}', head, f'{head}={count}')
        for head, of_head in heads(cfg).items()
        if of_head != count
    ]


def check_overlap(found: list[Split]) -> list[Finding]:
    """Check that no image is used both for training and for evaluation."""
    training = {path for split in found if split.name == 'train' for path in split.images}
    findings = []
    for split in found:
        shared = [path for path in split.images if path in training] if split.name != 'train' else []
        if shared:
            share = f'{len(shared)} of {len(split.images)}'
            problem = f'{split.name} images that are also training images ({share}): {some(shared)}'
            fix = f'point {split.key}.ann_file (or data_prefix) to images that are not used for training'
            findings.append(Finding(WARNING, problem, split.key, fix))
    return findings


def sample(items: list, count: int = SAMPLE) -> list:
    """Return ``count`` items, evenly spaced over the list."""
    if len(items) <= count:
        return items
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def map_in_threads(function: Callable, items: list, what: str) -> Iterator:
    """Apply ``function`` to each item in threads, which suits image decoding; show progress if there are many items."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(function, items)
        many = len(items) >= PROGRESS_BAR_FROM
        yield from track(results, what, len(items), transient=True) if many else results
