"""StopSignalHook: SIGTERM and Ctrl-C end a training with a checkpoint that continues exactly where it stopped."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console

INTERRUPTED = 'interrupted.pth'
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopSignalHook(Hook):
    """Finish the current iteration after SIGTERM or Ctrl-C, save ``interrupted.pth`` and exit with 143 or 130.

    A second Ctrl-C stops at once. With several processes, all of them agree on the iteration to stop after.

    Args:
        interval: Iterations between two agreements of several processes.
    """

    priority = 'LOWEST'  # after the schedulers and the checkpoints of this iteration

    def __init__(self, interval: int = 10):
        self.interval = interval
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only; there, somebody else decides
        for number in EXIT_CODES:
            self._previous[number] = signal.signal(number, self._note)

    def after_train(self, runner: Runner) -> None:
        self._restore()
        if is_main_process():
            _checkpoint_path(runner).unlink(missing_ok=True)  # the run is complete: nothing to continue

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self._agreed(runner.iter):
            self._stop(runner, iteration=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._previous and self._agreed(batch_idx):
            self._stop(runner, iteration=runner.iter)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._restore()  # a second signal acts at once

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _agreed(self, step: int) -> bool:
        if get_world_size() == 1:
            return self._received is not None
        if step % self.interval:
            return False
        received = torch.tensor(0 if self._received is None else int(self._received))
        if torch.distributed.get_backend() == 'nccl':
            received = received.cuda()
        all_reduce(received, 'max')
        if received.item():
            self._received = signal.Signals(int(received.item()))
        return self._received is not None

    def _stop(self, runner: Runner, iteration: int) -> None:
        self._restore()
        runner.save_checkpoint(
            runner.work_dir,
            INTERRUPTED,
            meta=dict(epoch=runner.epoch, iter=iteration),
            backend_args=dict(backend='atomic'),
        )
        if is_main_process():
            Console(stderr=True, highlight=False).print(
                f'{self._received.name}: stopped after iteration {iteration} of {runner.max_iters}, saved '
                f'{_checkpoint_path(runner)}. Continue with --resume.',
                soft_wrap=True,
            )
        raise SystemExit(EXIT_CODES[self._received])


def _checkpoint_path(runner: Runner) -> Path:
    return Path(runner.work_dir) / INTERRUPTED
