"""From the name of a config and the words of a command line to a config that is complete."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log

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
    cfg.setdefault('custom_imports', dict(imports=['mmplugin', 'mmplugin.engine.parts'], allow_failed_imports=False))
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


def is_segmentation(cfg: Config) -> bool:
    return cfg.get('default_scope') == 'mmseg' or 'decode_head' in (cfg.get('model') or {})


def dicts(node: Any) -> Iterator[dict]:
    """All dicts inside a config, outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from dicts(value)


def set_classes(cfg: Config, names: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Tells all datasets and heads which classes there are."""
    metainfo = dict(classes=tuple(names), palette=[tuple(colour) for colour in palette])
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(loader):
            cfg[loader].dataset.metainfo = metainfo
    for node in dicts(cfg.model):
        if 'num_classes' in node:
            node['num_classes'] = len(names)


def weights_of(cfg: Config) -> Path | None:
    """The file that the backbone starts from, if any."""
    init = cfg.model.backbone.get('init_cfg') or {}
    return Path(init['checkpoint']) if 'checkpoint' in init else None


def _is_local(path: Path) -> bool:
    return ':' not in str(path)[2:]  # torchvision:..., https:..., but not C:\\...


def drop_missing_weights(cfg: Config) -> None:
    """A trial does without weights that are not there; their frozen norms would then be frozen noise."""
    path = weights_of(cfg)
    if path is None or (_is_local(path) and path.is_file()):
        return
    print_log(f'No {path} here: the backbone starts from chance, with norms that learn.', 'current')
    cfg.model.backbone.init_cfg = None
    if 'norm_eval' in cfg.model.backbone:
        cfg.model.backbone.norm_eval = False


def require_weights(cfg: Config) -> None:
    """Stops a real run whose weights are missing before it has cost anything."""
    path = weights_of(cfg)
    if path is None or not _is_local(path) or path.is_file():
        return
    backbone = cfg.model.backbone
    raise UserError(
        f"The backbone's weights {path} are not there. Download the published classification weights of "
        f'{backbone.type} {backbone.get("arch")} (docs/weights.md says where), then run\n'
        f'    mmplugin convert DOWNLOADED {path}\n'
        'or train from chance (a long way): --cfg-options model.backbone.init_cfg=None model.backbone.norm_eval=False\n'
        'or only try things out: --mini'
    )


def without_sync_norms(cfg: Config) -> None:
    """SyncBN runs on GPUs only."""
    for node in dicts(cfg.model):
        if isinstance(node, ConfigDict | dict) and node.get('type') == 'SyncBN':
            node['type'] = 'BN'
