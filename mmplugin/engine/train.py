"""``tools/train.py``: a config and a few words become a trained, measured model with a report."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from rich.console import Console

from mmplugin.config_edits import require_weights
from mmplugin.engine.config import Settings, load_config
from mmplugin.errors import UserError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_common(parser: argparse.ArgumentParser) -> None:
    """What training and testing both take."""
    parser.add_argument('config', help='a file, or the name of a config: maskrcnn_v2_s2, semfpn_evit_m4, ...')
    parser.add_argument('--mini', action='store_true', help='the built-in set, drawn on first use, for two CPU cores')
    parser.add_argument('--data-root', help='folder of your own COCO-style data (with --mini: where the set is drawn)')
    parser.add_argument('--classes', help='your class names, separated by commas; default: those of the annotations')
    parser.add_argument('--work-dir', help='where results go; default: work_dirs/CONFIG')
    parser.add_argument('--cfg-options', nargs='+', action=Settings, help='settings to override: key=value ...')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='who starts the processes of one job')
    # torchrun up to 1.x passes one spelling, later ones the other; both mean the same
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--tensorboard', action='store_true', help='write curves for TensorBoard too')


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description='Train a config and measure the result.')
    add_common(parser)
    parser.add_argument('--resume', nargs='?', const='auto', help='continue from the last checkpoint, or from this one')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the whole batch size')
    parser.add_argument('--no-check', action='store_true', help='skip the look at the data before training')
    parser.add_argument('--no-report', action='store_true', help='skip the final evaluation with pictures')
    return parser.parse_args(argv)


def complete(options: argparse.Namespace) -> Config:
    """The config of a command line, launcher and work folder included."""
    os.environ.setdefault('LOCAL_RANK', str(options.local_rank))
    classes = options.classes.split(',') if options.classes else None
    cfg = load_config(
        options.config,
        mini=options.mini,
        data_root=options.data_root,
        classes=classes,
        cfg_options=options.cfg_options,
    )
    name = Path(options.config).stem + ('-mini' if options.mini else '')
    cfg.work_dir = options.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    cfg.launcher = options.launcher
    if options.tensorboard:
        add_tensorboard(cfg)
    return cfg


def add_tensorboard(cfg: Config) -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError('--tensorboard needs the package: pip install tensorboard') from error
    cfg.setdefault('visualizer', dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]))
    cfg.visualizer.vis_backends.append(dict(type='TensorboardVisBackend'))


def check_data(cfg: Config) -> None:
    """The fast part of ``tools/check_data.py``; errors stop the run before it costs anything."""
    from mmplugin.engine.check_data import check_config, show
    from mmplugin.findings import has_errors

    findings = check_config(cfg, fast=True)
    if findings:
        show(findings, Console(stderr=True))
    if has_errors(findings):
        raise UserError('the data and the config do not agree: mend what the table says, or skip with --no-check')


def set_resume(cfg: Config, resume: str | None) -> None:
    from mmplugin.engine.checkpoints import find_last_checkpoint

    if resume is None:
        return
    path = find_last_checkpoint(cfg.work_dir) if resume == 'auto' else Path(resume)
    if not path.is_file():
        raise UserError(f'--resume {resume}: there is no such file; --resume alone takes the last of {cfg.work_dir}')
    cfg.resume, cfg.load_from = True, str(path)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    options = parse(argv, prog)
    if options.amp and not torch.cuda.is_available():
        raise UserError('--amp needs a CUDA GPU here; without one leave it away')
    cfg = complete(options)
    if cfg.get('load_from') is None and options.resume is None:
        require_weights(cfg)
    set_resume(cfg, options.resume)
    if options.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if options.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    if not options.no_check and is_first_process():
        check_data(cfg)

    from mmplugin.engine.runner import build_runner

    started = time.perf_counter()
    runner = build_runner(cfg)
    runner.train()
    if not options.no_report and is_main_process():
        from mmplugin.engine.html_report import write_report

        write_report(runner, time.perf_counter() - started)
    return 0


def is_first_process() -> bool:
    """Before process groups exist: what the launchers say."""
    return all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
