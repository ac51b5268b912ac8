"""The settings that people change, as options. Each one is applied everywhere it matters."""

import argparse
import math
import re

from mmengine.config import Config

from mmplugin.config_edits import is_segmentation
from mmplugin.engine.cfg_options import known_arguments
from mmplugin.engine.image_size import LOADERS, set_size_
from mmplugin.engine.schedule import EPOCHS, ITERATIONS, limit_warm_up_, schedulers, set_length_
from mmplugin.errors import UserError

SMALLEST_SIDE = 32  # of the backbones


def add_training_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the options of training."""
    group = parser.add_argument_group('settings', 'the schedule, the pipelines and the model follow')
    length = group.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=_positive, metavar='N', help='passes over the training images')
    length.add_argument('--iters', type=_positive, metavar='N', help='training iterations, instead of epochs')
    group.add_argument('--batch', type=_positive, metavar='N', help='images per iteration and process')
    group.add_argument('--lr', type=_rate, metavar='LR', help='learning rate')
    group.add_argument(
        '--freeze', type=int, metavar='K', help='freeze the stem and K stages of the backbone; -1: freeze nothing'
    )
    group.add_argument('--seed', type=_count, metavar='N', help='seed of data order, augmentation and new weights')
    _add_common(group)


def add_test_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the options that testing has, too."""
    group = parser.add_argument_group('settings')
    group.add_argument('--batch', type=_positive, metavar='N', help='images per iteration and process')
    _add_common(group)


def _add_common(group: argparse._ArgumentGroup) -> None:
    group.add_argument('--size', type=_size, metavar='HxW', help='height x width of the images, such as 480x640')
    group.add_argument('--workers', type=_count, metavar='N', help='processes that load data; 0: the main process')


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text}: expected a whole number from 0')
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: expected a whole number from 1')
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text}: expected a number above 0, such as 1e-4')
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(sides) < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(
            f'{text}: expected height x width, such as 480x640, or one number for both; from {SMALLEST_SIDE}'
        )
    return sides


def apply_training_overrides_(cfg: Config, options: argparse.Namespace) -> list[str]:
    """Apply the options of training. Return what changes and what follows from it, in words."""
    changes = []
    if options.iters is not None:
        changes.append(set_length_(cfg, ITERATIONS, options.iters))
    if options.epochs is not None:
        changes.append(set_length_(cfg, EPOCHS, options.epochs))
    if options.batch is not None:
        cfg.train_dataloader.batch_size = options.batch
        rate = '' if options.lr else ' at the same learning rate'
        changes.append(f'{options.batch} images per iteration{rate}')
    length_changed = (options.iters, options.epochs, options.batch) != (None, None, None)
    if length_changed and (warm_up := limit_warm_up_(cfg)):
        changes.append(warm_up)
    if options.lr is not None:
        changes.append(_set_rate_(cfg, options.lr))
    if options.freeze is not None:
        changes.append(_freeze_(cfg, options.freeze))
    if options.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=options.seed)
        changes.append(f'seed {options.seed}')
    return changes + _apply_common_(cfg, options)


def apply_test_overrides_(cfg: Config, options: argparse.Namespace) -> list[str]:
    """Apply the options of testing. Return what changes and what follows from it, in words."""
    changes = []
    if options.batch is not None:
        if options.batch > 1 and is_segmentation(cfg):
            raise UserError(
                '--batch: mmseg tests images one by one, because their sizes differ. Omit it, or if all of your images '
                f'have the same size, use --cfg-options test_dataloader.batch_size={options.batch}'
            )
        cfg.test_dataloader.batch_size = options.batch
        changes.append(f'{options.batch} images per iteration')
    return changes + _apply_common_(cfg, options)


def _apply_common_(cfg: Config, options: argparse.Namespace) -> list[str]:
    changes = []
    if options.size is not None:
        changes.append(set_size_(cfg, *options.size))
    if options.workers is not None:
        for loader in filter(None, map(cfg.get, LOADERS)):
            loader.update(num_workers=options.workers, persistent_workers=options.workers > 0)
        changes.append(f'{options.workers} workers')
    return changes


def _freeze_(cfg: Config, stages: int) -> str:
    backbone = cfg.model.backbone
    if 'frozen_stages' not in {*backbone, *known_arguments(cfg, backbone, 'model.backbone')}:
        raise UserError(f'--freeze: {backbone.type} has no argument frozen_stages; omit it')
    backbone.frozen_stages = stages
    random = '' if stages < 0 or backbone.get('init_cfg') or cfg.get('load_from') else ' (randomly initialized)'
    return f'frozen_stages {stages}{random}'


def _set_rate_(cfg: Config, rate: float) -> str:
    """Set the learning rate; the rate at which a schedule ends keeps its ratio to it."""
    optimizer = cfg.optim_wrapper.optimizer
    factor = rate / optimizer.get('lr', rate)
    optimizer.lr = rate
    for scheduler in schedulers(cfg):
        if scheduler.get('eta_min'):
            scheduler['eta_min'] *= factor
    return f'learning rate {rate:g}'
