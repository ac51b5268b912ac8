"""What every check of data shares: a finding, and how a config names its datasets, classes and heads."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.progress import track

from mmplugin import stack
from mmplugin.config_edits import is_segmentation
from mmplugin.text import some

ERROR, WARNING, NOTE = 'error', 'warning', 'note'
SAMPLE = 16  # files that the fast check opens per split


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`), suspicious (`warning`) or merely not checked (`note`)."""

    severity: str
    what: str
    where: str  # a config key or a file
    mend: str  # the line to change


@dataclass
class Split:
    """One innermost dataset of a config, its paths joined as mmengine joins them."""

    name: str  # train, val or test
    key: str  # where its dict stands in the config
    config: dict
    dataset_class: type | None
    classes: tuple[str, ...] | None
    images: dict[str, tuple[int, int] | None] = field(default_factory=dict)  # filled by a check: real path -> size

    def option(self, name: str) -> Any:
        """The value of a constructor argument: the config's, else the default of the class or of a parent."""
        if name in self.config:
            return self.config[name]
        for parent in getattr(self.dataset_class, '__mro__', ()):
            argument = inspect.signature(parent.__init__).parameters.get(name)
            if argument is not None and argument.default is not inspect.Parameter.empty:
                return argument.default
        return None

    def path(self, value: str | None) -> Path:
        return Path(os.path.join(self.config.get('data_root') or '', value or ''))

    @property
    def remote(self) -> bool:
        parts = [self.config.get('data_root'), self.config.get('ann_file')]
        return bool(self.config.get('backend_args')) or any('://' in str(part) for part in parts)

    @property
    def known_classes(self) -> tuple[str, ...] | None:
        return getattr(self.dataset_class, 'METAINFO', {}).get('classes')


def _leaves(dataset: dict, key: str) -> Iterator[tuple[dict, str]]:
    if 'dataset' in dataset:
        yield from _leaves(dataset['dataset'], f'{key}.dataset')
    elif 'datasets' in dataset:
        for index, inner in enumerate(dataset['datasets']):
            yield from _leaves(inner, f'{key}.datasets.{index}')
    else:
        yield dataset, key


def splits(cfg: Config) -> list[Split]:
    """The innermost datasets of all loaders, wrappers such as RepeatDataset taken off."""
    scope = 'mmseg' if is_segmentation(cfg) else 'mmdet'
    stack.import_quietly(f'{scope}.datasets')
    registry = import_module(f'{scope}.registry').DATASETS
    found = []
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if not loader or not loader.get('dataset'):
            continue
        for config, key in _leaves(loader['dataset'], f'{name}_dataloader.dataset'):
            kind = config.get('type')
            dataset_class = registry.get(kind) if isinstance(kind, str) else kind
            # a Config's own attribute access would look up missing keys; the checks want a plain dict
            plain = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
            classes = (plain.get('metainfo') or {}).get('classes')
            classes = classes or getattr(dataset_class, 'METAINFO', {}).get('classes')
            classes = classes if classes is None or isinstance(classes, str) else tuple(classes)
            found.append(Split(name, key, plain, dataset_class, classes))
    return found


def _heads(node: Any, key: str) -> Iterator[tuple[str, int]]:
    """Every `num_classes` below `node` with its config key."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == 'num_classes' and isinstance(value, int):
                yield f'{key}.{name}', value
            elif name in ('bbox_head', 'mask_head') and key.endswith('roi_head') and isinstance(value, dict):
                yield from _heads({'num_classes': 80, **value}, f'{key}.{name}')  # mmdet's default, rarely meant
            elif name != 'backbone':
                yield from _heads(value, f'{key}.{name}')
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _heads(value, f'{key}.{index}')


def heads(cfg: Config) -> dict[str, int]:
    return dict(_heads(cfg.get('model') or {}, 'model'))


def check_classes(cfg: Config, split: Split) -> list[Finding]:
    """Class names that are one string, and heads that expect another number of classes."""
    key = f'{split.key}.metainfo.classes'
    if split.classes is None:
        return [Finding(ERROR, 'no class names', key, "metainfo=dict(classes=('first', 'second'))")]
    if isinstance(split.classes, str):
        text = f'classes is the string {split.classes!r}, which counts as {len(split.classes)} classes of one letter'
        return [Finding(ERROR, text, key, f'metainfo=dict(classes=({split.classes!r},))  # mind the comma')]
    count = len(split.classes)
    return [
        Finding(ERROR, f'the head expects {have} classes, the {split.name} set names {count}', head, f'{head}={count}')
        for head, have in heads(cfg).items()
        if have != count
    ]


def sample(items: list, count: int = SAMPLE) -> list:
    """`count` items spread evenly over the list."""
    if len(items) <= count:
        return items
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def each(function: Callable, items: list, what: str) -> Iterable:
    """Maps in threads (image decoders release Python's lock), with a progress bar where that takes a while."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(function, items)
        yield from track(results, what, len(items), transient=True) if len(items) > 500 else results


def check_overlap(found: list[Split]) -> list[Finding]:
    """Images that are both trained on and measured on."""
    training = {path for split in found if split.name == 'train' for path in split.images}
    findings = []
    for split in found:
        shared = [path for path in split.images if path in training] if split.name != 'train' else []
        if shared:
            text = f'{len(shared)} of {len(split.images)} {split.name} images are training images too: {some(shared)}'
            mend = f'point {split.key}.ann_file (or data_prefix) at images that are not trained on'
            findings.append(Finding(WARNING, text, split.key, mend))
    return findings
