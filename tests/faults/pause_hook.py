"""PauseHook: a training that waits at a known place for what a test does to it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module(force=True)
class PauseHook(Hook):
    """Pause at ``PAUSE_AT``, such as 'train 3', as long as ``PAUSE_FILE`` exists; or kill rank ``KILL_RANK`` once."""

    priority = 'VERY_HIGH'

    def _pause(self, place: str) -> None:
        if os.environ.get('PAUSE_AT') != place:
            return
        del os.environ['PAUSE_AT']
        marker = Path(os.environ['PAUSE_FILE'])
        marker.touch()
        while marker.exists():
            time.sleep(0.01)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Pause during an iteration, the first one being 1."""
        self._pause(f'train {runner.iter + 1}')
        marker = Path(os.environ.get('KILL_FILE', '/'))
        if os.environ.get('KILL_RANK') == str(get_rank()) and runner.iter == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Pause while a checkpoint is saved, which happens after this number of iterations."""
        self._pause(f'save {checkpoint["meta"]["iter"]}')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Pause during a validation."""
        self._pause(f'val {runner.iter}')
