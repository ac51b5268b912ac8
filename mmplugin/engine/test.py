"""The command ``test``: measure a checkpoint."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from rich.console import Console
from rich.markup import escape

from mmplugin import stack
from mmplugin.config_edits import dicts, evaluator_list, is_classification, scope_of
from mmplugin.convert.checkpoint_io import check_target
from mmplugin.data.splits import splits
from mmplugin.engine.arguments import add_common_arguments, config_from
from mmplugin.engine.overrides import add_test_overrides, apply_test_overrides_
from mmplugin.engine.work_dir import prepare_folder
from mmplugin.errors import UserError
from mmplugin.tables import show


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog=prog, description='Measure a checkpoint.')
    add_common_arguments(parser)
    add_test_overrides(parser)
    parser.add_argument('checkpoint', help='the .pth file to measure')
    parser.add_argument(
        '--allow-partial', action='store_true', help='measure although tensors of the checkpoint do not fit the model'
    )
    parser.add_argument('--out', help='save all predictions to this .pkl file')
    parser.add_argument('--show-dir', help='draw ground truth and prediction of every image into this folder')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score to draw (%(default)s)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation (segmentation only)')
    parser.add_argument('--fast-eval', action='store_true', help='faster-coco-eval instead of pycocotools')
    return parser.parse_args(argv)


def require_data(cfg: Config) -> None:
    """Raise a ``UserError`` if images or annotations of the test set are missing."""
    for split in splits(cfg):
        paths = [split.config.get('ann_file'), *(split.config.get('data_prefix') or {}).values()]
        missing = [split.path(path) for path in paths if path and not split.path(path).exists()]
        if split.name == 'test' and missing and not split.remote:
            raise UserError(
                f'{missing[0]} does not exist: put the data set there, use your own with --data-root FOLDER, or use '
                'the built-in one with --mini'
            )


def use_fast_eval_(cfg: Config) -> None:
    """Evaluate COCO metrics with faster-coco-eval."""
    if scope_of(cfg) != 'mmdet':
        raise UserError('--fast-eval is only for detection, which is evaluated with COCO metrics; omit it')
    if not hasattr(stack.import_quietly('mmdet.evaluation.metrics'), 'FasterCocoMetric'):
        raise UserError('--fast-eval requires the OneDL stack: this mmdet has no FasterCocoMetric; omit it')
    for metric in dicts(cfg.test_evaluator):
        if metric.get('type') in ('CocoMetric', 'mmdet.CocoMetric'):
            metric['type'] = 'FasterCocoMetric'


def use_tta_(cfg: Config) -> None:
    """Test with the config's ``tta_model`` and ``tta_pipeline``."""
    if 'tta_model' not in cfg:
        raise UserError('--tta: this config has no tta_model; mmplugin has one for segmentation only')
    warnings.filterwarnings('ignore', message='The shape of value will convert')  # mmseg's own, once per image
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return 0."""
    options = parse(argv, prog)
    if not Path(options.checkpoint).is_file():
        raise UserError(
            f'{options.checkpoint} is not a file; name a checkpoint, such as epoch_12.pth or iter_40000.pth in '
            'work_dirs/NAME'
        )
    if options.out and not options.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {options.out}: the name must end in .pkl or .pickle')
    if options.out:
        check_target(options.out, force=True)
    cfg = config_from(options, starts_from_weights=False, apply_overrides_=apply_test_overrides_)
    require_data(cfg)
    prepare_folder(cfg.work_dir)
    if options.show_dir:
        prepare_folder(options.show_dir, '--show-dir')
    cfg.load_from, cfg.resume = options.checkpoint, False
    cfg.model.backbone.init_cfg = None  # the checkpoint has all weights
    if options.fast_eval:
        use_fast_eval_(cfg)
    if options.tta:
        use_tta_(cfg)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] != 'LabelRangeHook']
    if options.show_dir:
        cfg.custom_hooks.append(dict(type='DrawHook', folder=options.show_dir, score_thr=options.score_thr))
    if options.out:
        dump = 'DumpDetResults' if scope_of(cfg) == 'mmdet' else 'mmengine.DumpResults'
        cfg.test_evaluator = [*evaluator_list(cfg.test_evaluator), dict(type=dump, out_file_path=options.out)]

    from mmplugin.engine import weights
    from mmplugin.engine.result_tables import confusion_matrix, details, headline
    from mmplugin.engine.runner import build_runner

    runner = build_runner(cfg, options.trust)
    runner.load = weights.load_partially if options.allow_partial else weights.load_exactly
    try:
        metrics = runner.test()
    finally:
        runner.close_progress()
    if not is_main_process():
        return 0
    console = Console(highlight=False)
    for problem in runner.fit.problems() if runner.fit else ():
        console.print(f'[bold]Not loaded:[/bold] {escape(problem)}', soft_wrap=True)
    show([headline(metrics), *details(runner.test_evaluator)], console)
    matrix = confusion_matrix(runner.test_evaluator)
    if matrix is not None:
        from mmplugin.engine.curves import confusion_plot

        target = Path(cfg.work_dir) / 'confusion.png'
        unit = 'Images' if is_classification(cfg) else 'Pixels'
        target.write_bytes(confusion_plot(matrix, runner.test_dataloader.dataset.metainfo['classes'], unit))
        console.print(f'Confusion matrix: {target}', soft_wrap=True)
    return 0
