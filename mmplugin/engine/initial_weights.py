"""Weights that a training starts from: found next to the user, downloaded, or replaced by random ones."""

from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS

from mmplugin.backbones import FAMILIES
from mmplugin.convert.download import DownloadError, is_local, is_remote, local_path
from mmplugin.errors import UserError

PUBLISHED = 'hf-hub:timm/'
NONE = 'none'
FOLDER, SUFFIXES = 'checkpoints', ('.pth', '.safetensors')


def weights_of(cfg: Config) -> str | None:
    """Return the checkpoint that the backbone is initialized from, if any."""
    init = cfg.model.backbone.get('init_cfg')
    return init.get('checkpoint') if isinstance(init, dict) else None  # a list says how to draw random weights


def set_weights_(cfg: Config, weights: str) -> None:
    """Initialize the backbone from a file, a URL or ``hf-hub:OWNER/NAME``, or randomly for ``none``."""
    backbone = cfg.model.backbone
    if weights != NONE:
        backbone.init_cfg = dict(type='Pretrained', checkpoint=weights)
        return
    _set_random_(cfg)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='LayerScaleHook')]


def _set_random_(cfg: Config) -> None:
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    if 'norm_eval' in backbone:
        backbone.norm_eval = False  # the statistics of a new network have to be measured


def prefer_local_weights_(cfg: Config) -> None:
    """Use ``checkpoints/v2_s2.pth`` or ``.safetensors`` in place of the published weights, if it exists."""
    name, stem = weights_of(cfg), _local_stem(cfg)
    if stem is None or not (name or '').startswith(PUBLISHED):
        return
    for path in (Path(FOLDER, stem + suffix) for suffix in SUFFIXES):
        if path.is_file():
            print_log(f'{path} is used in place of {name}.', 'current')
            cfg.model.backbone.init_cfg.checkpoint = str(path)
            return


def drop_missing_weights_(cfg: Config, report: bool = True) -> None:
    """Fall back to a randomly initialized backbone, without frozen norms, if its weights are not on this disk."""
    name = weights_of(cfg)
    if name is None or (is_local(name) and Path(name).is_file()):
        return
    if report:
        text = f'{name} is not on this disk: the backbone is randomly initialized and its norm layers are trainable.'
        print_log(text, 'current')
    _set_random_(cfg)


def check_weights(cfg: Config) -> None:
    """Find or download the weights of the backbone, and load them into one, before any data is read."""
    name = weights_of(cfg)
    if name is None:
        return
    try:
        if (is_local(name) or is_remote(name)) and not local_path(name).is_file():
            raise UserError(f"The backbone's weights {name} do not exist. {_alternatives(cfg)}")
    except DownloadError as error:
        raise UserError(
            f"The backbone's weights {name} cannot be downloaded: {error.reason}.\n"
            f'Download {error.url}\non another machine or name a mirror (HF_ENDPOINT=https://...). {_alternatives(cfg)}'
        ) from error
    if cfg.model.backbone.type in {cls.__name__ for cls in FAMILIES.values()}:
        MODELS.build(cfg.model.backbone).init_weights()


def _alternatives(cfg: Config) -> str:
    stem = _local_stem(cfg)
    place = f'Save the published file as {FOLDER}/{stem}{SUFFIXES[-1]}, or pass its path:' if stem else 'Pass a path:'
    return (
        f'{place} --weights FILE\n'
        'Or train from scratch (slow): --weights none\n'
        'Or try the built-in data set, which needs no weights: --mini'
    )


def _local_stem(cfg: Config) -> str | None:
    """Return the name of a local file with the weights of the backbone, without the suffix."""
    backbone = cfg.model.backbone
    names = {cls.__name__: family for family, cls in FAMILIES.items()}
    family, arch = names.get(backbone.type), backbone.get('arch')
    return f'{family}_{arch}' if family and isinstance(arch, str) else None
