"""The command ``train``: train a config, validate it and write a report."""

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
from mmplugin.engine.arguments import add_common_arguments, config_from
from mmplugin.engine.checkpoints import find_last_checkpoint
from mmplugin.errors import UserError


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog=prog, description='Train a config, validate it and write a report.')
    add_common_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto', help='continue from the last checkpoint, or from this one')
    parser.add_argument('--amp', action='store_true', help='mixed precision (CUDA only)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--no-check', action='store_true', help='do not check the data set before training')
    parser.add_argument('--no-report', action='store_true', help='do not write report.html after training')
    return parser.parse_args(argv)


def check_data(cfg: Config) -> None:
    """Run the fast checks of ``check-data``, and stop if there are errors."""
    from mmplugin.engine.check_data import check_config, show
    from mmplugin.findings import has_errors

    findings = check_config(cfg, fast=True)
    if findings:
        show(findings, Console(stderr=True))
    if has_errors(findings):
        raise UserError('dataset and config disagree. Fix the errors listed above, or pass --no-check')


def set_resume_(cfg: Config, resume: str) -> None:
    """Continue from a checkpoint; ``auto`` is the last one of the work folder."""
    path = find_last_checkpoint(cfg.work_dir) if resume == 'auto' else Path(resume)
    if not path.is_file():
        raise UserError(f'--resume {resume}: no such file; --resume alone takes the last checkpoint of {cfg.work_dir}')
    cfg.resume, cfg.load_from = True, str(path)


def is_first_process() -> bool:
    """Return whether this is rank 0, from what launchers set before there is a process group."""
    return all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return 0."""
    options = parse(argv, prog)
    if options.amp and not torch.cuda.is_available():
        raise UserError('--amp requires a CUDA GPU; omit it on CPU')
    cfg = config_from(options)
    if options.resume is not None:
        set_resume_(cfg, options.resume)
    elif cfg.get('load_from') is None:
        require_weights(cfg)
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
