"""Command-line arguments that training and testing have in common."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmplugin.config_edits import scope_of
from mmplugin.engine.cfg_options import CfgOptions
from mmplugin.engine.config import load_config
from mmplugin.engine.data_options import add_data_arguments, data_options
from mmplugin.errors import UserError

# Launchers, and the environment variables that they set.
LAUNCHERS = {
    'none': (),
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_SIZE', 'MASTER_ADDR'),
}

VISUALIZERS = {'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer', 'mmpretrain': 'UniversalVisualizer'}


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both training and testing."""
    parser.add_argument('config', help='a file, or the name of a config: maskrcnn_v2_s2, semfpn_evit_m4, ...')
    parser.add_argument('--mini', action='store_true', help='use the built-in data set and sizes for two CPU cores')
    add_data_arguments(parser)
    parser.add_argument('--work-dir', help='folder of the results; default: work_dirs/CONFIG')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, help='any other settings: key=value, or +key=value to add a key'
    )
    parser.add_argument(
        '--trust', action='store_true', help='run code that checkpoints may contain; only for files of people you trust'
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher of distributed runs')
    # Launchers pass either spelling.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--tensorboard', action='store_true', help='also log to TensorBoard')


def is_first_process() -> bool:
    """Return whether this is rank 0, from what launchers set before there is a process group."""
    return all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))


def config_from(
    options: argparse.Namespace,
    starts_from_weights: bool = True,
    apply_overrides_: Callable[[Config, argparse.Namespace], list[str]] | None = None,
) -> Config:
    """Load the config that the common arguments describe.

    Args:
        options: The parsed arguments.
        starts_from_weights: Whether the backbone starts from the weights of its config, rather than a checkpoint.
        apply_overrides_: Function that applies the other options, and returns what changes.
    """
    _require_launcher(options.launcher)
    os.environ.setdefault('LOCAL_RANK', str(options.local_rank))

    def edit_(cfg: Config) -> None:
        changes = apply_overrides_(cfg, options) if apply_overrides_ else []
        if changes and is_first_process():
            print_log(f'Settings: {"; ".join(changes)}.', 'current')

    cfg = load_config(
        options.config,
        mini=options.mini,
        data_root=options.data_root,
        classes=options.classes.split(',') if options.classes else None,
        data_options=data_options(options),
        work_dir=options.work_dir,
        cfg_options=options.cfg_options,
        starts_from_weights=starts_from_weights and 'load_from' not in (options.cfg_options or {}),
        weights=getattr(options, 'weights', None),
        edit_=edit_,
    )
    name = Path(options.config).stem + ('-mini' if options.mini else '')
    cfg.work_dir = options.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    cfg.launcher = options.launcher
    cfg.setdefault('visualizer', dict(type=VISUALIZERS[scope_of(cfg)], vis_backends=[dict(type='LocalVisBackend')]))
    if options.tensorboard:
        _add_tensorboard_(cfg)
    return cfg


def _require_launcher(name: str) -> None:
    """Raise a ``UserError`` if this process was not started by the launcher."""
    missing = [variable for variable in LAUNCHERS[name] if variable not in os.environ]
    if missing:
        start = {'pytorch': 'torchrun --nproc-per-node=N', 'slurm': 'srun', 'mpi': 'mpirun'}[name]
        raise UserError(
            f'--launcher {name}: the environment lacks {", ".join(missing)}; start the command with {start}, or omit '
            '--launcher to use one process'
        )
    if name in ('slurm', 'mpi') and not torch.cuda.is_available():
        raise UserError(f'--launcher {name} requires GPUs, which torch does not see; use --launcher pytorch on CPUs')


def _add_tensorboard_(cfg: Config) -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError('--tensorboard requires the package tensorboard: pip install tensorboard') from error
    cfg.visualizer.vis_backends = [*(cfg.visualizer.get('vis_backends') or []), dict(type='TensorboardVisBackend')]
