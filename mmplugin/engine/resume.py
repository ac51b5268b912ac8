"""Which checkpoint a training continues from, and whether it can."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmplugin.convert import checkpoint_io
from mmplugin.errors import UserError
from mmplugin.hooks.stop_signal import INTERRUPTED
from mmplugin.text import some

NAME = re.compile(r'(?:iter|epoch)_\d+\.pth')
NEEDED = ('state_dict', 'optimizer', 'message_hub', 'meta')


def find_last_checkpoint(work_dir: str | Path) -> Path:
    """Return the checkpoint that was saved last. ``best_*`` files do not count.

    The time in the checkpoint decides, because a folder may also hold checkpoints of an earlier, longer training.

    Raises:
        UserError: There is none, or the newest one is damaged; the message names the newest intact one.
    """
    paths = [path for path in Path(work_dir).glob('*.pth') if NAME.fullmatch(path.name) or path.name == INTERRUPTED]
    damaged, intact = {}, {}
    for path in paths:
        try:
            checkpoint = checkpoint_io.read(path)
            intact[path] = (str(checkpoint['meta'].get('time')), position(checkpoint, path)[1])
        except (UserError, KeyError, AttributeError) as error:
            damaged[path] = str(error) if isinstance(error, UserError) else f'{path} is not a checkpoint of a training'
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


def position(checkpoint: Any, path: str | Path) -> tuple[int, int]:
    """Return the epoch and the iteration at which a checkpoint was saved."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    epoch, iteration = (meta.get(name) if isinstance(meta, Mapping) else None for name in ('epoch', 'iter'))
    if type(epoch) is int and type(iteration) is int and min(epoch, iteration) >= 0:
        return epoch, iteration
    raise UserError(
        f'{path} does not say where its training stopped: epoch {epoch!r:.20}, iteration {iteration!r:.20}; expected '
        'two whole numbers from 0. Name a checkpoint that training saved'
    )


def check_resumable(checkpoint: Any, path: str | Path, max_iters: int, epoch_length: int | None = None) -> int:
    """Return the iteration of a checkpoint.

    Args:
        checkpoint: Its content.
        path: Its file, for messages.
        max_iters: Iterations of the whole run.
        epoch_length: Iterations of an epoch, if the run counts epochs.

    Raises:
        UserError: It lacks a part of the training state, or its position does not exist in this run.
    """
    missing = [name for name in NEEDED if not (isinstance(checkpoint, Mapping) and _is_filled(checkpoint.get(name)))]
    if missing:
        raise UserError(
            f'--resume {path}: the file lacks {", ".join(missing)}, so training cannot continue exactly. '
            f'{_weights_only(path)}'
        )
    epoch, iteration = position(checkpoint, path)
    if iteration > max_iters:
        raise UserError(
            f'--resume {path}: it was saved at iteration {iteration}, but this run ends at {max_iters}; name another '
            'checkpoint, or train longer'
        )
    if epoch_length and not 0 <= iteration - epoch * epoch_length <= epoch_length:
        raise UserError(
            f'--resume {path}: it was saved after {epoch} epochs and {iteration} iterations, but an epoch of this run '
            f'has {epoch_length} iterations; use the same data, batch size and number of processes. '
            f'{_weights_only(path)}'
        )
    return iteration


def check_optimizer(optimizer: torch.optim.Optimizer, path: str | Path) -> None:
    """Raise a ``UserError`` if the state that was loaded into an optimizer does not fit its parameters."""
    broken = [
        f'{name} of {tuple(parameter.shape)}'
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
        and (value.shape not in (parameter.shape, torch.Size()) or not torch.isfinite(value).all())
    ]
    if broken:
        raise UserError(
            f'--resume {path}: {len(broken)} tensors of the optimizer have another shape than their parameter, or NaN '
            f'({some(broken)}). {_weights_only(path)}'
        )


def _is_filled(part: Any) -> bool:
    return isinstance(part, Mapping) and len(part) > 0


def _weights_only(path: str | Path) -> str:
    return f'To start a new training from its weights, use --cfg-options load_from={path}'
