"""The length of a training, and everything that is measured in it: milestones, decay, warm-up, evaluation, saving."""

import json
import math
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmplugin.config_edits import is_segmentation
from mmplugin.errors import UserError
from mmplugin.files import require_file

WARM_UP_SHARE = 0.1  # of a training, at most
LARGEST_FILE = 50e6  # bytes; larger annotations are not read only to count their images
EPOCHS, ITERATIONS = 'max_epochs', 'max_iters'
LOOPS = {EPOCHS: 'EpochBasedTrainLoop', ITERATIONS: 'IterBasedTrainLoop'}


def set_length_(cfg: Config, unit: str, total: int) -> str:
    """Set the number of epochs or iterations, and scale what depends on it.

    Args:
        cfg: The config. It may count in the other unit; the schedule keeps its shape.
        unit: ``max_epochs`` or ``max_iters``.
        total: The new length.

    Returns:
        What follows, in words.
    """
    old_unit = next((name for name in LOOPS if name in (cfg.get('train_cfg') or {})), None)
    if old_unit is None:
        raise UserError(f'--epochs and --iters: {cfg.filename} has no train_cfg with {" or ".join(LOOPS)}')
    factor = total / cfg.train_cfg[old_unit]
    by_epoch, changed = unit == EPOCHS, unit != old_unit

    def interval(old: int) -> int:
        """As often as before in a longer training, as many times as before in a shorter one."""
        new = min(total, max(1, round(old * factor)))
        return new if changed else min(old, new)

    milestones: list[int] = []
    for scheduler in schedulers(cfg):
        if is_warm_up(scheduler):
            continue  # limited by limit_warm_up_
        own_unit = scheduler.get('by_epoch', True) == (old_unit == EPOCHS)
        for name in ('begin', 'end', 'T_max'):
            if isinstance(scheduler.get(name), int):
                scheduler[name] = round(scheduler[name] * factor)
        if 'milestones' in scheduler:
            milestones = sorted({max(1, round(value * factor)) for value in scheduler['milestones']} - {total})
            scheduler['milestones'] = milestones
        if own_unit and changed:
            scheduler['by_epoch'] = by_epoch
            scheduler.pop('convert_to_iter_based', None)
            if by_epoch:
                scheduler['convert_to_iter_based'] = True  # the learning rate still changes with every iteration
    cfg.train_cfg.val_interval = interval(cfg.train_cfg.get('val_interval', 1))
    if 'val_begin' in cfg.train_cfg:
        cfg.train_cfg.val_begin = min(total, max(1, round(cfg.train_cfg.val_begin * factor)))
    checkpoint = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', dict(type='CheckpointHook'))
    checkpoint.update(interval=interval(checkpoint.get('interval', 1)), by_epoch=by_epoch)
    text = _count(total, by_epoch)
    if changed:
        text += _set_loop_(cfg, unit)
    cfg.train_cfg[unit] = total
    if milestones:
        text += f', learning rate drops after {" and ".join(map(str, milestones))}'
    return f'{text}, evaluation after every {_count(cfg.train_cfg.val_interval, by_epoch)}'


def _count(number: int, by_epoch: bool) -> str:
    word = 'epoch' if by_epoch else 'iteration'
    return f'{number} {word}' + 's' * (number != 1)


def _set_loop_(cfg: Config, unit: str) -> str:
    """Change the loop, and what has to count in the same unit. Return what else changes, in words."""
    by_epoch = unit == EPOCHS
    resumable = 'Resumable' in cfg.train_cfg.type
    for other in LOOPS:
        cfg.train_cfg.pop(other, None)
    cfg.train_cfg.type = ('Resumable' if resumable else '') + LOOPS[unit]
    loader = cfg.train_dataloader
    if resumable:
        repeats = loader.get('sampler', {}).get('repeats', 1)
        loader.sampler = dict(type='SeededSampler', shuffle=True, endless=not by_epoch, repeats=repeats)
    else:
        loader.sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    cfg.default_hooks.setdefault('logger', dict(type='LoggerHook')).update(log_metric_by_epoch=by_epoch)
    cfg.setdefault('log_processor', dict(type='LogProcessor')).update(by_epoch=by_epoch)
    # AspectRatioBatchSampler groups images within an epoch.
    grouped = not by_epoch and loader.pop('batch_sampler', None)
    return ', images not grouped by aspect ratio' if grouped else ''


def limit_warm_up_(cfg: Config) -> str | None:
    """Shorten a warm-up of more than a tenth of the training, in which the model would hardly learn."""
    for scheduler in schedulers(cfg) if cfg.get('train_cfg') else ():
        if not is_warm_up(scheduler):
            continue
        by_epoch = scheduler.get('by_epoch', True)
        total = cfg.train_cfg.get(EPOCHS) if by_epoch else total_iterations(cfg)
        if total is None:
            continue
        longest = max(1, int(WARM_UP_SHARE * total))
        if scheduler.get('end', math.inf) > longest:
            scheduler['end'] = longest
            return f'warm-up of {_count(longest, by_epoch)}'
    return None


def schedulers(cfg: Config) -> list[dict]:
    """Return the learning rate schedules, which are a list or one dict."""
    found = cfg.get('param_scheduler') or []
    return [found] if isinstance(found, dict) else list(found)


def is_warm_up(scheduler: dict) -> bool:
    """Return whether a schedule raises the learning rate."""
    kind = str(scheduler.get('type')).rpartition('.')[2]
    return kind.startswith('Linear') and scheduler.get('start_factor', 1 / 3) < scheduler.get('end_factor', 1.0)


def total_iterations(cfg: Config) -> int | None:
    """Return the length of the training in iterations, if it is known without reading a large file."""
    if ITERATIONS in cfg.train_cfg:
        return cfg.train_cfg[ITERATIONS]
    images = train_images(cfg)
    if images is None:
        return None
    return cfg.train_cfg[EPOCHS] * math.ceil(images / (cfg.train_dataloader.batch_size * processes()))


def processes() -> int:
    """Return the number of processes of a distributed training, as launchers state it."""
    names = ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
    return next((int(os.environ[name]) for name in names if os.environ.get(name, '').isdecimal()), 1)


def train_images(cfg: Config) -> int | None:
    """Return the number of training images, if it is known without reading a large file."""
    dataset = cfg.train_dataloader.dataset
    listed = _path(dataset, dataset.get('ann_file'))
    if listed is not None:
        return _listed_images(listed)
    folder = _path(dataset, (dataset.get('data_prefix') or {}).get('img_path'))
    if not is_segmentation(cfg) or folder is None or not folder.is_dir():
        return None
    return sum(1 for _ in folder.rglob(f'*{dataset.get("img_suffix", ".jpg")}')) or None


def _listed_images(path: Path) -> int | None:
    try:
        if require_file(path).st_size > LARGEST_FILE:
            return None
        text = path.read_text(encoding='utf-8')
        found: Any = json.loads(text)['images'] if path.suffix == '.json' else text.split('\n')
        return sum(1 for image in found if image) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the check of the data names what is wrong with the file


def _path(dataset: dict, value: str | None) -> Path | None:
    return Path(dataset.get('data_root') or '', value) if value else None
