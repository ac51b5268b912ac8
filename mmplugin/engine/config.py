"""Load a config by path or name, and adapt it to a data set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmplugin.config_edits import is_classification
from mmplugin.cpu_threads import allowed_cores, fitting_workers
from mmplugin.engine.data_options import DataOptions
from mmplugin.errors import UserError
from mmplugin.paths import configs_root, find_config


def load_config(
    name: str | Path,
    *,
    mini: bool = False,
    data_root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    data_options: DataOptions | None = None,
    work_dir: str | Path | None = None,
    cfg_options: dict[str, Any] | None = None,
    starts_from_weights: bool = False,
    weights: str | None = None,
    edit_: Callable[[Config], None] | None = None,
) -> Config:
    """Load a config and adapt it to a data set.

    Args:
        name: A file, or the name of one of mmplugin's configs.
        mini: Use the built-in data set, drawn on first use, with sizes and a schedule for two CPU cores.
        data_root: Folder of the user's data; with ``mini``, folder of the built-in data set.
        classes: Class names of the user's data. Default: those in the annotations.
        data_options: How to read the user's data where it does not say so itself.
        work_dir: Folder for converted data; default: that of the config, or ``work_dirs/NAME``.
        cfg_options: Dotted keys and values, applied last.
        starts_from_weights: Whether the backbone starts from the weights of the config, rather than a checkpoint.
        weights: Weights of the backbone instead of those of the config: a file, a URL, ``hf-hub:...`` or ``none``.
        edit_: Other edits, applied before ``cfg_options``.
    """
    from mmplugin.engine import initial_weights, own_data
    from mmplugin.engine import mini as mini_set
    from mmplugin.engine.cfg_options import merge_cfg_options_

    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except (SyntaxError, KeyError, OSError) as error:
        raise UserError(f'{path} is not a config that mmengine can read: {error}') from error
    if 'backbone' not in cfg.get('model', {}):
        raise UserError(
            f'{path} has no model with a backbone; add one through _base_, for example one of {configs_root()}'
        )
    cfg.setdefault('custom_imports', dict(imports=['mmplugin'], allow_failed_imports=False))
    if path.is_relative_to(configs_root()):
        fit_workers_(cfg)
    if weights:
        initial_weights.set_weights_(cfg, weights)
    elif starts_from_weights:
        initial_weights.prefer_local_weights_(cfg)
    if mini:
        if not weights:
            initial_weights.drop_missing_weights_(cfg, starts_from_weights)
        if classes:
            raise UserError('--mini has its own classes; use --classes with --data-root and without --mini')
        if is_classification(cfg):
            from mmplugin.classification.own_data import apply_mini_

            apply_mini_(cfg, Path(data_root or 'data'))
        else:
            mini_set.apply_(cfg, Path(data_root or 'data'))
    elif data_root:
        folder = Path(work_dir or cfg.get('work_dir') or f'work_dirs/{path.stem}')
        if is_classification(cfg):
            from mmplugin.classification.own_data import apply_

            apply_(cfg, Path(data_root), classes, data_options or DataOptions(), folder)
        else:
            own_data.apply_(cfg, Path(data_root), classes, data_options, folder)
    elif classes:
        raise UserError('--classes requires --data-root, the folder with the data of these classes')
    if edit_:
        edit_(cfg)
    if cfg_options:
        merge_cfg_options_(cfg, cfg_options, path)
    return cfg


def fit_workers_(cfg: Config) -> None:
    """Reduce the data loading processes of mmplugin's own configs, which are those of a large machine, to this one."""
    cores, gpu = allowed_cores(), torch.cuda.is_available()
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].num_workers = fitting_workers(cfg[name].num_workers, gpu, cores)
