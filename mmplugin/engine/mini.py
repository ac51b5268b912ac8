"""``--mini``: train on the built-in data set in minutes, on two CPU cores."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmplugin.config_edits import dicts, is_segmentation, set_annotations_, set_classes_
from mmplugin.data.synthetic import ensure_mini_ade, ensure_mini_coco
from mmplugin.data.synthetic.scene import BACKGROUND_NAMES

CHANNELS = 64  # of the pyramid and the heads, instead of 256
BATCH = 4
NORM = dict(type='BN', requires_grad=True)  # for randomly initialized parts, which then converge in minutes
DETECTION_EPOCHS, SEGMENTATION_ITERS = 3, 900
# Steps of WarmStartHook on crops of single objects. Segmentation needs fewer: every pixel is labeled.
WARM_START, DETECTION_WARM_UP, SEGMENTATION_WARM_UP = 'WarmStartHook', 200, 80
OBJECT_WEIGHT = 4.0  # six of the ten classes are objects, but they cover a sixth of the pixels
ADE_SHORT_SIDE, MINI_SHORT_SIDE, MINI_LONG_SIDE = 512, 160, 768
ADAPTED = 'mini'  # key of configs that were adapted and written to a file, such as those that a search finds


def apply_(cfg: Config, root: Path) -> None:
    """Adapt any detection or Semantic FPN config of mmplugin to the built-in data set in a folder.

    Of a config that was adapted before, only the data set may change: its settings are those of the first time, or of
    whoever changed them since.
    """
    segmentation = is_segmentation(cfg)
    (_use_segmentation_set_ if segmentation else _use_detection_set_)(cfg, root)
    if not cfg.model.backbone.get('init_cfg') and not any(hook['type'] == WARM_START for hook in cfg.custom_hooks):
        steps = SEGMENTATION_WARM_UP if segmentation else DETECTION_WARM_UP
        cfg.custom_hooks.append(dict(type=WARM_START, steps=steps))
    if cfg.get(ADAPTED):
        return
    cfg[ADAPTED] = True
    (_segmentation_ if segmentation else _detection_)(cfg)
    # Reading an image takes 2 ms: on two cores, worker processes cost more than they save.
    cfg.train_dataloader.update(batch_size=BATCH, num_workers=0)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=1, num_workers=0)  # like inferencers: padding to a batch changes results a little
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=BATCH)
    cfg.default_hooks.logger.interval = 10


def _set_schedule_(cfg: Config, lr: float, total: int, warmup: int, by_epoch: bool) -> None:
    cfg.optim_wrapper.optimizer.update(lr=lr, weight_decay=0.05, fused=True)
    cfg.optim_wrapper.clip_grad = dict(max_norm=10.0)
    cosine = dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=total, T_max=total, by_epoch=by_epoch)
    if by_epoch:
        cosine['convert_to_iter_based'] = True
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup), cosine]


def _narrow_(model: Any) -> None:
    """Reduce the 256 channels of the pyramid and the heads."""
    for node in dicts({key: model[key] for key in ('neck', 'rpn_head', 'roi_head', 'bbox_head') if key in model}):
        for name in ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels'):
            if node.get(name) == 256:
                node[name] = CHANNELS


def _loaders(cfg: Config, train: str, val: str) -> Iterable[tuple[Any, str]]:
    return ((cfg.train_dataloader, train), (cfg.val_dataloader, val), (cfg.test_dataloader, val))


def _use_detection_set_(cfg: Config, root: Path) -> None:
    mini = ensure_mini_coco(root)
    set_classes_(cfg, mini.classes, mini.palette)
    for loader, split in _loaders(cfg, 'train', 'val'):
        loader.dataset.update(
            data_root=str(mini.root), ann_file=f'annotations/{split}.json', data_prefix=dict(img=f'{split}/')
        )
    set_annotations_(cfg, mini.root / 'annotations' / 'val.json')


def _detection_(cfg: Config) -> None:
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        for step in loader.dataset.pipeline:
            if step['type'] == 'Resize':  # images have sides of 160 to 224 pixels
                step['scale'] = (224, 192)
    model = cfg.model
    _narrow_(model)
    model.neck.norm_cfg = NORM
    if model.type == 'MaskRCNN':
        model.train_cfg.rpn_proposal.update(nms_pre=300, max_per_img=100)
        model.test_cfg.rpn.update(nms_pre=300, max_per_img=100)
        model.train_cfg.rcnn.sampler.num = 64
        model.test_cfg.rcnn.max_per_img = 30
        model.roi_head.bbox_head.update(fc_out_channels=256, reg_class_agnostic=True)
        model.roi_head.mask_head.update(num_convs=2, norm_cfg=NORM, class_agnostic=True)
        model.rpn_head.anchor_generator.scales = [4]  # small images have small objects
    else:
        model.bbox_head.anchor_generator.octave_base_scale = 2
        model.bbox_head.stacked_convs = 2
        model.test_cfg.update(nms_pre=300, max_per_img=30)
    cfg.train_cfg.update(max_epochs=DETECTION_EPOCHS, val_interval=1, val_begin=2)
    _set_schedule_(cfg, lr=1e-3, total=DETECTION_EPOCHS, warmup=50, by_epoch=True)


def _use_segmentation_set_(cfg: Config, root: Path) -> None:
    mini = ensure_mini_ade(root)
    for loader, split in _loaders(cfg, 'training', 'validation'):
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(mini.root),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            img_suffix='.jpg',
            seg_map_suffix='.png',
            reduce_zero_label=True,
        )
    set_classes_(cfg, mini.classes, mini.palette)


def _segmentation_(cfg: Config) -> None:
    for node in dicts([cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader, cfg.get('tta_pipeline')]):
        if node.get('type') in ('Resize', 'RandomResize'):  # a crop then shows most of an image
            factor = min(node['scale']) / ADE_SHORT_SIDE  # other than 1 for test-time augmentation
            node['scale'] = (int(MINI_LONG_SIDE * factor), int(MINI_SHORT_SIDE * factor))
            if 'ratio_range' in node:
                node['ratio_range'] = (0.9, 1.2)  # objects of half the size would take longer to learn
        elif node.get('type') == 'RandomCrop':
            node['crop_size'] = (MINI_SHORT_SIDE, MINI_SHORT_SIDE)
    cfg.model.data_preprocessor.size = (MINI_SHORT_SIDE, MINI_SHORT_SIDE)
    _narrow_(cfg.model)
    cfg.model.neck.norm_cfg = NORM
    cfg.model.decode_head.in_channels = [CHANNELS] * len(cfg.model.decode_head.in_channels)
    cfg.model.decode_head.update(channels=CHANNELS, dropout_ratio=0.0)
    classes = cfg.train_dataloader.dataset.metainfo.classes
    weights = [1.0 if name in BACKGROUND_NAMES else OBJECT_WEIGHT for name in classes]
    cfg.model.decode_head.loss_decode = dict(type='BalancedCrossEntropy', class_weight=weights)
    cfg.train_cfg.update(max_iters=SEGMENTATION_ITERS, val_interval=SEGMENTATION_ITERS)
    cfg.default_hooks.checkpoint.interval = SEGMENTATION_ITERS // 2
    _set_schedule_(cfg, lr=2e-3, total=SEGMENTATION_ITERS, warmup=50, by_epoch=False)
