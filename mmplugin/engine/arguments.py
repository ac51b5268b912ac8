"""Command-line arguments that training and testing have in common."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction

from mmplugin.config_edits import is_segmentation
from mmplugin.engine.config import load_config
from mmplugin.errors import UserError

# Launchers, and the environment variables that they set.
LAUNCHERS = {
    'none': (),
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_SIZE', 'MASTER_ADDR'),
}


class CfgOptions(DictAction):
    """mmengine's ``key=value ...``, with a message instead of a traceback for a word without ``=``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Parse the words of the option."""
        for value in values:
            if '=' not in value:
                parser.error(f"{option_string}: '{value}' is not key=value, such as train_dataloader.batch_size=4")
        super().__call__(parser, namespace, values, option_string)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both training and testing."""
    parser.add_argument('config', help='a file, or the name of a config: maskrcnn_v2_s2, semfpn_evit_m4, ...')
    parser.add_argument('--mini', action='store_true', help='use the built-in data set and sizes for two CPU cores')
    parser.add_argument('--data-root', help='folder of your data (with --mini: folder of the built-in data set)')
    parser.add_argument('--classes', help='class names, separated by commas; default: those in the annotations')
    parser.add_argument('--work-dir', help='folder of the results; default: work_dirs/CONFIG')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, help='settings to override: key=value ...')
    parser.add_argument(
        '--trust', action='store_true', help='run code that checkpoints may contain; only for files of people you trust'
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher of distributed runs')
    # Launchers pass either spelling.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--tensorboard', action='store_true', help='also log to TensorBoard')


def config_from(options: argparse.Namespace, starts_from_weights: bool = True) -> Config:
    """Load the config that the common arguments describe.

    Args:
        options: The parsed arguments.
        starts_from_weights: Whether the backbone starts from the weights of its config, rather than a checkpoint.
    """
    _require_launcher(options.launcher)
    os.environ.setdefault('LOCAL_RANK', str(options.local_rank))
    cfg = load_config(
        options.config,
        mini=options.mini,
        data_root=options.data_root,
        classes=options.classes.split(',') if options.classes else None,
        cfg_options=options.cfg_options,
        starts_from_weights=starts_from_weights and 'load_from' not in (options.cfg_options or {}),
    )
    name = Path(options.config).stem + ('-mini' if options.mini else '')
    cfg.work_dir = options.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    cfg.launcher = options.launcher
    kind = 'SegLocalVisualizer' if is_segmentation(cfg) else 'DetLocalVisualizer'
    cfg.setdefault('visualizer', dict(type=kind, vis_backends=[dict(type='LocalVisBackend')]))
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
