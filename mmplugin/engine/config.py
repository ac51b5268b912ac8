"""Load a config by path or name, and adapt it to a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmplugin.errors import UserError
from mmplugin.paths import configs_root, find_config


def load_config(
    name: str | Path,
    *,
    mini: bool = False,
    data_root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    cfg_options: dict[str, Any] | None = None,
    starts_from_weights: bool = True,
) -> Config:
    """Load a config and adapt it to a data set.

    Args:
        name: A file, or the name of one of mmplugin's configs.
        mini: Use the built-in data set, drawn on first use, with sizes and a schedule for two CPU cores.
        data_root: Folder of the user's data; with ``mini``, folder of the built-in data set.
        classes: Class names of the user's data. Default: those in the annotations.
        cfg_options: Dotted keys and values, applied last.
        starts_from_weights: Whether to say that weights of the config are missing; a checkpoint replaces them.
    """
    from mmplugin.engine import mini as mini_set
    from mmplugin.engine import own_data

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
    if mini:
        if classes:
            raise UserError('--mini has its own classes; use --classes with --data-root and without --mini')
        mini_set.apply_(cfg, Path(data_root or 'data'), starts_from_weights)
    elif data_root:
        own_data.apply_(cfg, Path(data_root), classes)
    elif classes:
        raise UserError('--classes requires --data-root, the folder with the data of these classes')
    if cfg_options:
        try:
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError) as error:
            raise UserError(f'--cfg-options does not fit {path}: {error.args[0]}') from error
    return cfg
