"""``tools/test.py``: measures a checkpoint, and shows what is right and wrong with it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from rich.console import Console

from mmplugin import stack
from mmplugin.config_edits import is_segmentation
from mmplugin.data.splits import splits
from mmplugin.engine.train import add_common, complete
from mmplugin.errors import UserError
from mmplugin.tables import show


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description='Measure a checkpoint.')
    add_common(parser)
    parser.add_argument('checkpoint', help='the .pth file to measure')
    parser.add_argument('--out', help='save all predictions to this .pkl file')
    parser.add_argument('--show-dir', help='write a picture of each image, prediction beside truth, to this folder')
    parser.add_argument('--score-thr', type=float, default=0.3, help='weakest detection to draw (%(default)s)')
    parser.add_argument('--tta', action='store_true', help='segmentation: several scales and flips, averaged')
    parser.add_argument('--fast-eval', action='store_true', help='faster-coco-eval instead of pycocotools')
    return parser.parse_args(argv)


def require_data(cfg: Config) -> None:
    """Stops before the model is built where the images or annotations to measure with are missing."""
    for split in splits(cfg):
        paths = [split.config.get('ann_file'), *(split.config.get('data_prefix') or {}).values()]
        missing = [split.path(path) for path in paths if path and not split.path(path).exists()]
        if split.name == 'test' and missing and not split.remote:
            raise UserError(
                f'{missing[0]} is not there: put the data set in its place, or take your own with --data-root FOLDER, '
                'or the built-in one with --mini'
            )


def use_fast_eval(cfg: Config) -> None:
    if is_segmentation(cfg):
        raise UserError('--fast-eval is about COCO boxes and masks; segmentation has no use for it')
    if stack.current().coco_metric != 'FasterCocoMetric':
        raise UserError('--fast-eval needs the OneDL stack, whose mmdet brings FasterCocoMetric; leave it away here')
    for evaluator in cfg.test_evaluator:
        if evaluator['type'] == 'CocoMetric':
            evaluator['type'] = 'FasterCocoMetric'


def use_tta(cfg: Config) -> None:
    if 'tta_model' not in cfg:
        raise UserError('--tta: this config names no tta_model; the segmentation configs do')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    options = parse(argv, prog)
    if not Path(options.checkpoint).is_file():
        raise UserError(
            f'{options.checkpoint} is no file; name a checkpoint: epoch_12.pth or iter_40000.pth in work_dirs/NAME'
        )
    if options.out and not options.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {options.out}: allowed are names that end in .pkl or .pickle')
    cfg = complete(options)
    require_data(cfg)
    cfg.load_from = options.checkpoint
    cfg.model.backbone.init_cfg = None  # everything comes from the checkpoint
    if options.fast_eval:
        use_fast_eval(cfg)
    if options.tta:
        use_tta(cfg)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] != 'LabelRangeHook']
    if options.show_dir:
        cfg.custom_hooks.append(dict(type='DrawHook', folder=options.show_dir, score_thr=options.score_thr))
    if options.out:
        dump = 'DumpDetResults' if not is_segmentation(cfg) else 'mmengine.DumpResults'
        cfg.test_evaluator = [*cfg.test_evaluator, dict(type=dump, out_file_path=options.out)]

    from mmplugin.engine.result_tables import result_tables
    from mmplugin.engine.runner import build_runner

    runner = build_runner(cfg)
    metrics = runner.test()
    if not is_main_process():
        return 0
    evaluator, meta = runner.test_evaluator, runner.test_dataloader.dataset.metainfo
    console = Console(highlight=False)
    show(result_tables(metrics, evaluator, meta['classes']), console)
    if is_segmentation(cfg):
        from mmplugin.engine.curves import confusion_picture

        target = Path(cfg.work_dir) / 'confusion.png'
        target.write_bytes(confusion_picture(evaluator.metrics[0].matrix, meta['classes']))
        console.print(f'Confusion matrix: {target}', soft_wrap=True)
    return 0
