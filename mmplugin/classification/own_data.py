"""A classification config, adapted to a folder of the user, or to the built-in set."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmplugin.classification.folders import Listing, read_folders, write_lists
from mmplugin.config_edits import evaluator_list, set_classes_
from mmplugin.data.converted import FOLDER
from mmplugin.data.synthetic import ensure_mini_objects
from mmplugin.engine.data_options import DataOptions
from mmplugin.engine.image_size import set_size_
from mmplugin.engine.mini import ADAPTED
from mmplugin.errors import UserError
from mmplugin.palette import palette

MINI_SIDE, MINI_BATCH, MINI_EPOCHS = 64, 64, 6
STRONG = ('RandAugment', 'RandomErasing')


def apply_(cfg: Config, root: Path, classes: Sequence[str] | None, options: DataOptions, work_dir: Path) -> None:
    """Adapt a config to the images in a folder, in which nothing is written."""
    for name in ('layout', 'label_table', 'unlabelled', 'background'):
        if getattr(options, name):
            raise UserError(f'--{name.replace("_", "-")} is not for classification, whose classes are folders; omit it')
    listing = read_folders(root, [name.strip() for name in classes] if classes else None, options.val_share)
    print_log(f'{root}: {listing.summary}.', 'current')
    _use_(cfg, root, listing, work_dir / FOLDER)


def apply_mini_(cfg: Config, root: Path) -> None:
    """Adapt a config to the built-in set of single objects, for two CPU cores."""
    mini = ensure_mini_objects(root)
    cfg.model.teacher, cfg.model.head.distilled = None, False
    _use_(cfg, mini.root, read_folders(mini.root), mini.root)
    if cfg.get(ADAPTED):
        return
    cfg[ADAPTED] = True
    cfg.train_dataloader.update(batch_size=MINI_BATCH, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler.repeats = 1
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=MINI_BATCH, num_workers=0, persistent_workers=False)
    set_size_(cfg, MINI_SIDE, MINI_SIDE)
    # A small set in few epochs: the augmentation of 300 epochs would hide the objects.
    steps = [step for step in cfg.train_dataloader.dataset.pipeline if step['type'] not in STRONG]
    cfg.train_dataloader.dataset.pipeline = steps
    for step in steps:
        if step['type'] == 'RandomResizedCrop':
            step['crop_ratio_range'] = (0.6, 1.0)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        for step in loader.dataset.pipeline:
            if step['type'] == 'ResizeEdge':
                step['scale'] = MINI_SIDE  # the objects fill their images
    cfg.model.train_cfg = None
    cfg.model.data_preprocessor.batch_augments = None
    cfg.optim_wrapper.optimizer.update(lr=2e-3, weight_decay=0.05, fused=True)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
        dict(
            type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, end=MINI_EPOCHS, T_max=MINI_EPOCHS,
            convert_to_iter_based=True,
        ),
    ]  # fmt: skip
    cfg.train_cfg.update(max_epochs=MINI_EPOCHS, val_interval=2)
    # Adaptive clipping would slow down the few steps at a high learning rate.
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'AdaptiveClipHook']
    cfg.optim_wrapper.clip_grad = dict(max_norm=5.0)
    if not cfg.model.backbone.get('init_cfg'):
        cfg.custom_hooks.append(dict(type='LayerScaleHook'))
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=MINI_BATCH)
    cfg.default_hooks.logger.interval = 10


def _use_(cfg: Config, root: Path, listing: Listing, folder: Path) -> None:
    count = len(listing.classes)
    if cfg.model.get('teacher') and cfg.model.head.num_classes != count:
        print_log(
            f'The teacher knows {cfg.model.head.num_classes} classes, this data has {count}: training without a '
            'teacher. A teacher of these classes can be named in a config, see docs/pretraining.md.',
            'current',
        )
        cfg.model.teacher = None
        cfg.model.head.distilled = False
    paths = write_lists(listing, folder)
    test = paths.get('test', paths['val'])
    for loader, path in ((cfg.train_dataloader, paths['train']), (cfg.val_dataloader, paths['val'])):
        loader.dataset.update(data_root=str(root), data_prefix=dict(img_path=''), ann_file=str(path))
    cfg.test_dataloader.dataset.update(data_root=str(root), data_prefix=dict(img_path=''), ann_file=str(test))
    cfg.train_dataloader.batch_size = min(cfg.train_dataloader.batch_size, len(listing.images['train']))
    set_classes_(cfg, listing.classes, palette(count))
    for evaluator in [*evaluator_list(cfg.val_evaluator), *evaluator_list(cfg.test_evaluator)]:
        if 'topk' in evaluator:
            evaluator['topk'] = tuple(k for k in evaluator['topk'] if k < count)
