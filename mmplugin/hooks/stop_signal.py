"""StopSignalHook: SIGTERM and Ctrl-C end a training with a checkpoint that continues exactly where it stopped."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from torch.utils.data import DataLoader

CAN_WAIT = hasattr(signal, 'sigwaitinfo')  # not on macOS and Windows
INTERRUPTED = 'interrupted.pth'
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
REPEATED_WITHIN = 3.0  # seconds in which torchrun and schedulers send a signal again that a process already has


class StopSignalHook(Hook):
    """Finish the current iteration after SIGTERM or Ctrl-C, save ``interrupted.pth`` and exit with 143 or 130.

    A second signal acts at once, without a checkpoint. With several processes, all of them agree on the iteration to
    stop after. A signal that the parent process set to be ignored, as ``nohup`` does, stays ignored.

    Args:
        interval: Iterations between two agreements of several processes.
    """

    priority = 'LOWEST'  # after the schedulers and the checkpoints of this iteration

    def __init__(self, interval: int = 10):
        self.interval = interval
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._launched = False

    def before_train(self, runner: Runner) -> None:
        """Take over the signals."""
        self._process, self._launched = os.getpid(), runner.launcher != 'none'
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only; there, somebody else decides
        for number in EXIT_CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)

    def after_train(self, runner: Runner) -> None:
        """Give the signals back, and remove the checkpoint of an interruption that is over."""
        self._restore()
        if is_main_process():
            _checkpoint_path(runner).unlink(missing_ok=True)  # the run is complete: nothing to continue

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Stop if a signal was received."""
        if received := self._agreed(runner.iter):
            self._stop(runner, received, iteration=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop if a signal was received; the validation is lost."""
        loader = runner.val_dataloader
        common = len(loader.dataset) // get_world_size() // (loader.batch_size or 1)  # batches that every process has
        everywhere = get_world_size() == 1 or batch_idx < common
        if self._previous and everywhere and (received := self._agreed(batch_idx)):
            self._stop(runner, received, iteration=runner.iter)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader, forked with this handler: its parent decides
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
        elif not (self._launched and time.monotonic() - self._received_at < REPEATED_WITHIN):
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _agreed(self, step: int) -> signal.Signals | None:
        """Return the signal that any process has received."""
        if get_world_size() == 1:
            return self._received
        if step % self.interval:
            return None
        received = torch.tensor(0 if self._received is None else int(self._received))
        if torch.distributed.get_backend() == 'nccl':
            received = received.cuda()
        all_reduce(received, 'max')
        return signal.Signals(int(received.item())) if received.item() else None

    def _stop(self, runner: Runner, received: signal.Signals, iteration: int) -> None:
        runner.save_checkpoint(
            runner.work_dir,
            INTERRUPTED,
            meta=dict(epoch=runner.epoch, iter=iteration),
            backend_args=dict(backend='atomic'),
        )
        if is_main_process():
            Console(stderr=True, highlight=False).print(
                f'{received.name}: stopped after iteration {iteration} of {runner.max_iters}, saved '
                f'{_checkpoint_path(runner)}. Continue with --resume.',
                soft_wrap=True,
            )
        barrier()  # a launcher ends the other processes when the first one exits
        raise SystemExit(EXIT_CODES[received])


def _checkpoint_path(runner: Runner) -> Path:
    return Path(runner.work_dir) / INTERRUPTED


def leave_signals_to_parent_(loader: DataLoader) -> None:
    """Keep signals to the whole process group from ending the workers of a data loader.

    The training stops by itself, after an iteration for which it needs its workers. It ends them when it exits.
    """
    loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)
    if loader.num_workers and loader.multiprocessing_context is None and CAN_WAIT:
        context = {'fork': _ForkContext, 'spawn': _SpawnContext}.get(multiprocessing.get_start_method())
        loader.multiprocessing_context = context and context()


class _BlockedAtStart:
    """Block SIGTERM from the first thread of a process on: torch starts others before a worker is initialized."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            super().start()  # type: ignore[misc]  # of the process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


if CAN_WAIT:

    class _ForkProcess(_BlockedAtStart, multiprocessing.context.ForkProcess):
        pass

    class _SpawnProcess(_BlockedAtStart, multiprocessing.context.SpawnProcess):
        pass

    class _ForkContext(multiprocessing.context.ForkContext):
        Process = _ForkProcess

    class _SpawnContext(multiprocessing.context.SpawnContext):
        Process = _SpawnProcess


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    if init is not None:
        init(worker)


def _obey_parent() -> None:
    """End this process at a SIGTERM from its parent. Signal handlers of Python do not know the sender."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
