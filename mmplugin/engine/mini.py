"""What ``--mini`` changes: the built-in set, and sizes and a schedule with which two CPU cores are done in minutes."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmplugin.config_edits import dicts, drop_missing_weights, is_segmentation, set_classes
from mmplugin.data.synthetic import ensure_mini_ade, ensure_mini_coco
from mmplugin.data.synthetic.scene import BACKGROUND_NAMES

CHANNELS = 64  # of the pyramid and what reads it, instead of 256
BATCH = 4
NORM = dict(type='BN', requires_grad=True)  # in what starts from chance: it then learns in minutes
DETECTION_EPOCHS, SEGMENTATION_ITERS = 3, 900
DETECTION_WARM_UP, SEGMENTATION_WARM_UP = 200, 80  # steps on single things; every pixel of a mask teaches more
THING_WEIGHT = 4.0  # things cover a sixth of the pixels and are six of the ten classes


def apply(cfg: Config, root: Path) -> None:
    """Adapts any detection or Semantic FPN config of this package."""
    segmentation = is_segmentation(cfg)
    (_segmentation if segmentation else _detection)(cfg, root)
    drop_missing_weights(cfg)
    if not cfg.model.backbone.get('init_cfg'):
        steps = SEGMENTATION_WARM_UP if segmentation else DETECTION_WARM_UP
        cfg.custom_hooks.append(dict(type='WarmStartHook', steps=steps))
    # no workers: reading takes 2 ms an image, and on two cores a worker costs more than it gains
    cfg.train_dataloader.update(batch_size=BATCH, num_workers=0)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=1, num_workers=0)  # as an inferencer does: padding to a batch changes results a little
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=BATCH)
    cfg.default_hooks.logger.interval = 10


def _optimise(cfg: Config, lr: float, total: int, warmup: int, by_epoch: bool) -> None:
    cfg.optim_wrapper.optimizer.update(lr=lr, weight_decay=0.05, fused=True)
    cfg.optim_wrapper.clip_grad = dict(max_norm=10.0)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
        dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=total, T_max=total, by_epoch=by_epoch,
             **(dict(convert_to_iter_based=True) if by_epoch else {})),
    ]


def _narrow(model: Any) -> None:
    """256 channels become fewer wherever the pyramid's width is meant."""
    for node in dicts({key: model[key] for key in ('neck', 'rpn_head', 'roi_head', 'bbox_head') if key in model}):
        for name in ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels'):
            if node.get(name) == 256:
                node[name] = CHANNELS


def _detection(cfg: Config, root: Path) -> None:
    mini = ensure_mini_coco(root)
    set_classes(cfg, mini.classes, mini.palette)
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val'), (cfg.test_dataloader, 'val')):
        loader.dataset.update(
            data_root=str(mini.root), ann_file=f'annotations/{split}.json', data_prefix=dict(img=f'{split}/')
        )
        for step in loader.dataset.pipeline:
            if step['type'] == 'Resize':  # images are 160 to 224 pixels a side
                step['scale'] = (224, 192)
    for evaluators in (cfg.val_evaluator, cfg.test_evaluator):
        for evaluator in evaluators:
            if 'ann_file' in evaluator:
                evaluator['ann_file'] = str(mini.root / 'annotations' / 'val.json')
    model = cfg.model
    _narrow(model)
    model.neck.norm_cfg = NORM
    if model.type == 'MaskRCNN':
        model.train_cfg.rpn_proposal.update(nms_pre=300, max_per_img=100)
        model.test_cfg.rpn.update(nms_pre=300, max_per_img=100)
        model.train_cfg.rcnn.sampler.num = 64
        model.test_cfg.rcnn.max_per_img = 30
        model.roi_head.bbox_head.update(fc_out_channels=256, reg_class_agnostic=True)
        model.roi_head.mask_head.update(num_convs=2, norm_cfg=NORM, class_agnostic=True)
        model.rpn_head.anchor_generator.scales = [4]  # the pictures, and the things in them, are small
    else:
        model.bbox_head.anchor_generator.octave_base_scale = 2
        model.bbox_head.stacked_convs = 2
        model.test_cfg.update(nms_pre=300, max_per_img=30)
    cfg.train_cfg.update(max_epochs=DETECTION_EPOCHS, val_interval=1, val_begin=2)
    _optimise(cfg, lr=1e-3, total=DETECTION_EPOCHS, warmup=50, by_epoch=True)


def _segmentation(cfg: Config, root: Path) -> None:
    mini = ensure_mini_ade(root)
    for loader, split in (
        (cfg.train_dataloader, 'training'), (cfg.val_dataloader, 'validation'), (cfg.test_dataloader, 'validation'),
    ):
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(mini.root),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            img_suffix='.jpg',
            seg_map_suffix='.png',
            reduce_zero_label=True,
        )
    set_classes(cfg, mini.classes, mini.palette)
    for node in dicts([cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader, cfg.get('tta_pipeline')]):
        if node.get('type') in ('RandomResize', 'AlignResize'):
            node['scale'] = (768, 160)  # a crop then shows most of a picture
            if 'ratio_range' in node:
                node['ratio_range'] = (0.9, 1.2)  # things of half the size would take longer to learn than there is
        elif node.get('type') == 'RandomCrop':
            node['crop_size'] = (160, 160)
    cfg.model.data_preprocessor.size = (160, 160)
    _narrow(cfg.model)
    cfg.model.neck.norm_cfg = NORM
    cfg.model.decode_head.in_channels = [CHANNELS] * len(cfg.model.decode_head.in_channels)
    cfg.model.decode_head.update(channels=CHANNELS, dropout_ratio=0.0)
    weights = [1.0 if name in BACKGROUND_NAMES else THING_WEIGHT for name in mini.classes]
    cfg.model.decode_head.loss_decode = dict(type='BalancedCrossEntropy', class_weight=weights)
    cfg.train_cfg.update(max_iters=SEGMENTATION_ITERS, val_interval=SEGMENTATION_ITERS)
    cfg.default_hooks.checkpoint.interval = SEGMENTATION_ITERS // 2
    _optimise(cfg, lr=2e-3, total=SEGMENTATION_ITERS, warmup=50, by_epoch=False)
