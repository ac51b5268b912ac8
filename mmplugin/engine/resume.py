"""Which checkpoint a training continues from, and whether it can."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmplugin.convert import checkpoint_io
from mmplugin.errors import UserError
from mmplugin.hooks.stop_signal import INTERRUPTED

NAME = re.compile(r'(?:iter|epoch)_\d+\.pth')
NEEDED = ('state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta')


def find_last_checkpoint(work_dir: str | Path) -> Path:
    """Return the checkpoint with the most iterations. ``best_*`` files do not count.

    Raises:
        UserError: There is none, or the newest one is damaged; the message names the newest intact one.
    """
    paths = [path for path in Path(work_dir).glob('*.pth') if NAME.fullmatch(path.name) or path.name == INTERRUPTED]
    damaged, intact = {}, {}
    for path in paths:
        try:
            intact[path] = position(checkpoint_io.read(path), path)
        except UserError as error:
            damaged[path] = str(error)
    newest = max(intact, key=intact.__getitem__, default=None)
    for path, problem in sorted(damaged.items(), key=lambda item: item[0].stat().st_mtime, reverse=True):
        if newest is None or path.stat().st_mtime >= newest.stat().st_mtime:
            hint = f'continue from the newest intact one: --resume {newest}' if newest else 'train without --resume'
            raise UserError(f'--resume: {problem}. No training was started; {hint}')
    if newest is None:
        raise UserError(
            f'--resume: no epoch_N.pth, iter_N.pth or {INTERRUPTED} in {work_dir}; '
            'train without --resume, or name a file'
        )
    return newest


def position(checkpoint: Any, path: str | Path) -> int:
    """Return the iteration at which a checkpoint was saved."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    numbers = [meta.get(name) for name in ('epoch', 'iter')] if isinstance(meta, Mapping) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError(
            f'{path} does not say where its training stopped: meta holds epoch and iter {numbers}; expected two whole '
            'numbers from 0. Name a checkpoint that training saved'
        )
    return numbers[1]


def check_resumable(checkpoint: Any, path: str | Path, max_iters: int) -> int:
    """Return the iteration of a checkpoint.

    Raises:
        UserError: It lacks a part of the training state, or lies beyond the end of this run.
    """
    missing = [name for name in NEEDED if not (isinstance(checkpoint, Mapping) and checkpoint.get(name))]
    if missing:
        raise UserError(
            f'--resume {path}: the file lacks {", ".join(missing)}, so training cannot continue exactly. To start a '
            f'new training from its weights, use --cfg-options load_from={path}'
        )
    iteration = position(checkpoint, path)
    if iteration > max_iters:
        raise UserError(
            f'--resume {path}: it was saved at iteration {iteration}, but this run ends at {max_iters}; name another '
            'checkpoint, or train longer'
        )
    return iteration
