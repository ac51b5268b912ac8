"""From the name of a config and the words of a command line to a config that is complete."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from mmplugin.errors import UserError
from mmplugin.paths import configs_root, find_config


class Settings(DictAction):
    """mmengine's ``key=value ...`` with a message in place of a traceback for a word that is neither."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Sequence[str], option_string: str | None = None
    ) -> None:
        for word in values:
            if '=' not in word:
                parser.error(f"{option_string}: '{word}' is no key=value, such as train_dataloader.batch_size=4")
        super().__call__(parser, namespace, values, option_string)


def load_config(
    name: str | Path,
    *,
    mini: bool = False,
    data_root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Config:
    """Reads a config and adapts it.

    Args:
        name: A file, or the name of one of this package's configs.
        mini: Use the built-in set, drawn on first use, with sizes and a schedule for two CPU cores.
        data_root: With ``mini``, where the built-in set lies; else the folder of the user's own data.
        classes: Names of the user's classes; read from the annotations if they are in there.
        cfg_options: Applied last: dotted keys and their values.
    """
    from mmplugin.engine import mini as mini_set
    from mmplugin.engine import own_data

    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except (SyntaxError, KeyError, OSError) as error:
        raise UserError(f'{path} is no config that mmengine can read: {error}') from error
    if 'backbone' not in cfg.get('model', {}):
        raise UserError(
            f'{path} has no model with a backbone; name one that has in _base_, such as one of {configs_root()}'
        )
    cfg.setdefault('custom_imports', dict(imports=['mmplugin'], allow_failed_imports=False))
    if mini:
        if classes:
            raise UserError('--mini brings its own classes; give --classes with --data-root, and without --mini')
        mini_set.apply(cfg, Path(data_root or 'data'))
    elif data_root:
        own_data.apply(cfg, Path(data_root), classes)
    elif classes:
        raise UserError('--classes needs --data-root, the folder that holds the data of these classes')
    if cfg_options:
        try:
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError) as error:
            raise UserError(f'--cfg-options does not fit {path}: {error.args[0]}') from error
    return cfg
