"""The command ``train``: train a config, validate it and write a report."""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from rich.console import Console
from torch import nn

from mmplugin.convert.download import is_local
from mmplugin.engine.arguments import add_common_arguments, config_from, is_first_process
from mmplugin.engine.initial_weights import check_weights, weights_of
from mmplugin.engine.overrides import add_training_overrides, apply_training_overrides_
from mmplugin.engine.processes import restarted_by_torchrun
from mmplugin.engine.resume import find_last_checkpoint
from mmplugin.engine.work_dir import locked, mark_start, prepare_folder, remove_drafts, saved_since_start
from mmplugin.errors import UserError
from mmplugin.files import reason

CPU_AMP = 'AutocastOptimWrapper'
INTACT = 'Training stopped; checkpoints that were saved before are intact. Continue with --resume'


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog=prog, description='Train a config, validate it and write a report.')
    add_common_arguments(parser)
    add_training_overrides(parser)
    parser.add_argument(
        '--weights', metavar='WHICH', help='weights of the backbone: a file, a URL, hf-hub:OWNER/NAME, or none'
    )
    parser.add_argument('--resume', nargs='?', const='auto', help='continue from the last checkpoint, or from this one')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on CUDA, bfloat16 on CPU')
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
        raise UserError(f'--resume {path}: no such file; --resume alone takes the last checkpoint of {cfg.work_dir}')
    cfg.resume, cfg.load_from = True, str(path)


def add_safety_hooks_(cfg: Config) -> None:
    """Add what every training of this command has, also with a config that does not name it."""
    present = {hook.get('type') for hook in cfg.get('custom_hooks') or []}
    added = [dict(type=name) for name in ('FiniteLossHook', 'StopSignalHook') if name not in present]
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *added]


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the approximate size of a checkpoint: weights, and two moments of the optimizer."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights + 2 * trainable


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return 0."""
    options = parse(argv, prog)
    if options.weights and options.resume:
        raise UserError('--weights and --resume exclude each other: the checkpoint has the weights of the backbone')
    cfg = config_from(options, options.resume is None, apply_training_overrides_)
    if options.amp:
        cuda = torch.cuda.is_available()
        cfg.optim_wrapper.update(dict(type='AmpOptimWrapper', loss_scale='dynamic') if cuda else dict(type=CPU_AMP))
    add_safety_hooks_(cfg)
    if options.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise UserError(
                '--auto-scale-lr: this config has no auto_scale_lr; add auto_scale_lr=dict(base_batch_size=16)'
            )
        cfg.auto_scale_lr.enable = True
    if is_first_process():
        prepare_folder(cfg.work_dir)
    with locked(cfg.work_dir) if is_first_process() else nullcontext(), one_message(cfg.work_dir):
        set_start_(cfg, options.resume)
        if not options.no_check and is_first_process():
            check_data(cfg)
        run(cfg, options)
    return 0


def set_start_(cfg: Config, resume: str | None) -> None:
    """Set what the training starts from: a checkpoint of this training, other weights, or those of the config."""
    if is_first_process():
        remove_drafts(cfg.work_dir)
    if restarted_by_torchrun() and saved_since_start(cfg.work_dir):
        resume = 'auto'
    elif resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if resume is not None:
        set_resume_(cfg, resume)
    elif is_first_process() and not restarted_by_torchrun():
        mark_start(cfg.work_dir)
    name = weights_of(cfg)
    if cfg.get('load_from') is not None:
        if name and not (is_local(name) and Path(name).is_file()):
            cfg.model.backbone.init_cfg = None  # the checkpoint has these weights, too
    elif is_first_process():  # the others download while they build the model, if they have to
        check_weights(cfg)


@contextmanager
def one_message(work_dir: str) -> Iterator[None]:
    """Turn errors of files and of worker processes into one message."""
    logging.raiseExceptions = False  # a log file on a full disk would print a traceback for every line
    try:
        yield
    except OSError as error:
        # An error from a worker process consists of a traceback, whose last line is the error.
        text = reason(error) if error.errno else str(error).strip().rpartition('\n')[2]
        raise UserError(f'{error.filename or work_dir}: {text}. {INTACT}') from error
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error) or 'Traceback' in str(error):
            raise
        raise UserError(
            f'a worker process of the data loader ended unexpectedly ({str(error).splitlines()[0]}), often because '
            f'memory ran out; reduce the number of workers or the batch size. {INTACT}'
        ) from error


def run(cfg: Config, options: argparse.Namespace) -> None:
    """Train, validate and write the report."""
    from mmplugin.engine.runner import build_runner

    started = time.perf_counter()
    runner = build_runner(cfg, options.trust)
    if is_main_process():
        prepare_folder(cfg.work_dir, bytes_needed=checkpoint_bytes(runner.model))
    try:
        runner.train()
        if runner.resumed_at_end:
            print_log(f'{cfg.load_from} is the end of this training: it is only validated', 'current', logging.WARNING)
            if runner.val_loop is not None:
                runner.val()
    finally:
        runner.close_progress()
    if not options.no_report and is_main_process():
        from mmplugin.engine.html_report import write_report

        write_report(runner, time.perf_counter() - started)
