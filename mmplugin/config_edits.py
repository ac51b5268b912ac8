"""Questions to a config and small edits of it, shared by training, testing, data checks and the benchmark."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmplugin.errors import UserError


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
