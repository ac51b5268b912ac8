"""Trainings of a few iterations on a few small images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmplugin import stack
from mmplugin.config_edits import dicts, is_segmentation
from mmplugin.data.synthetic import ensure_mini_ade, ensure_mini_coco
from mmplugin.engine import mini, train
from mmplugin.engine.config import load_config
from mmplugin.engine.resume import find_last_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# For scripts: stock mmdet cannot be imported without compiled operators unless mmplugin is imported first.
# Stock mmengine cannot load its own checkpoints with torch 2.6 and later; mmplugin's reader can.
SAFE_LOADER = 'from mmplugin.engine.weights import use_safe_loader; use_safe_loader(False)'
IMPORT_FIRST = f'import mmplugin; {SAFE_LOADER}' if stack.current() is stack.STOCK else ''


@contextmanager
def use_tiny_sets(root: Path) -> Iterator[None]:
    """Make ``--mini`` use eight images for training and two for validation, and do not format configs.

    mmengine formats the whole config for every checkpoint, which takes longer than a tiny training.
    """
    drawn = {'ensure_mini_coco': ensure_mini_coco(root, 8, 2), 'ensure_mini_ade': ensure_mini_ade(root, 8, 2)}
    with pytest.MonkeyPatch.context() as patch:
        for name, mini_set in drawn.items():
            patch.setattr(mini, name, lambda _, mini_set=mini_set: mini_set)
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield


def tiny_config(name: str, folder: Path, scale: tuple[int, int] = (96, 64), **changes) -> Path:
    """Write a complete config with six iterations, or three epochs of two iterations, to a file."""
    cfg = load_config(name, mini=True, data_root=folder)
    for step in dicts([cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader, cfg.get('tta_pipeline')]):
        if step.get('type') in ('Resize', 'RandomResize'):
            step['scale'] = scale
        elif step.get('type') == 'RandomCrop':
            step['crop_size'] = (64, 64)
    if is_segmentation(cfg):
        cfg.model.data_preprocessor.size = (64, 64)
        cfg.train_cfg.update(max_iters=6, val_interval=6)
        cfg.default_hooks.checkpoint.interval = 2
    else:
        cfg.train_cfg.update(max_epochs=3, val_interval=3)
    cfg.train_dataloader.batch_size = 4
    cfg.custom_hooks[-1].update(steps=2, batch_size=16)  # WarmStartHook
    cfg.default_hooks.logger.interval = 1
    cfg.merge_from_dict(changes)
    return write(cfg, folder / 'tiny.py')


def write(cfg: Config, path: Path) -> Path:
    """Write a config to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path)
    return path


def run_training(config: Path, work_dir: Path, *arguments: str) -> None:
    """Run the command ``train`` in this process."""
    assert train.main([str(config), '--work-dir', str(work_dir), '--no-check', *arguments]) == 0


def last_weights(work_dir: Path) -> dict[str, torch.Tensor]:
    """Load the weights of the last checkpoint."""
    return torch.load(find_last_checkpoint(work_dir), weights_only=False)['state_dict']
