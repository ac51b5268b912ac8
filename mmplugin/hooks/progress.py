"""ProgressHook: where a long job stands, in one line: losses, speed, wait for data, remaining time."""

import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmplugin.text import duration


class ProgressHook(Hook):
    """A bar where there is a terminal, else a line every so often; mmengine's own lines go to its log file only.

    Args:
        every: Seconds between two lines without a terminal.
        window: Iterations over which speed, waiting and losses are averaged.
    """

    priority = 'LOWEST'

    def __init__(self, every: float = 20.0, window: int = 50):
        self.every = every
        self.console = Console(stderr=True, highlight=False)
        self.steps: deque[tuple[float, float]] = deque(maxlen=window)  # (seconds in all, seconds of waiting for data)
        self.losses: deque[dict[str, float]] = deque(maxlen=window)
        self.bar: Progress | None = None
        self.last_line = 0.0

    # -- training

    def before_run(self, runner: Runner) -> None:
        quieten(runner.logger)

    def before_train(self, runner: Runner) -> None:
        self.mark = time.perf_counter()
        self.first_iter = runner.iter
        self._open('train', runner.max_iters, runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        self.mark = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.waited = time.perf_counter() - self.mark

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        now = time.perf_counter()
        self.steps.append((now - self.mark, self.waited))
        self.mark = now
        losses = {key: value for key, value in (outputs or {}).items() if key.startswith('loss')}
        self.losses.append({key: float(value.detach()) for key, value in losses.items()})
        done, total = runner.iter + 1, runner.max_iters
        self._show('train', done, total, self._training_text(total - done), final=done == total)

    def _training_text(self, left: int) -> str:
        seconds, waiting = (sum(column) for column in zip(*self.steps, strict=True))
        mean = {key: sum(loss.get(key, 0.0) for loss in self.losses) / len(self.losses) for key in self.losses[-1]}
        parts = ' '.join(f'{key.removeprefix("loss_")} {value:.3f}' for key, value in mean.items())
        speed = len(self.steps) / max(seconds, 1e-9)
        share = waiting / max(seconds, 1e-9)
        return f'{parts} | {speed:.2f} it/s, {share:.0%} waiting for data | {duration(left / speed)} left'

    def after_train(self, runner: Runner) -> None:
        self._close()

    # -- validation and test: they differ in name only

    def before_val_epoch(self, runner: Runner) -> None:
        self._close()
        self.started = time.perf_counter()
        self._open('eval', len(runner.val_dataloader), 0)

    def before_test_epoch(self, runner: Runner) -> None:
        self.started = time.perf_counter()
        self._open('test', len(runner.test_dataloader), 0)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self._measuring('eval', batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self._measuring('test', batch_idx + 1, len(runner.test_dataloader))

    def _measuring(self, name: str, done: int, total: int) -> None:
        speed = done / max(time.perf_counter() - self.started, 1e-9)
        self._show(name, done, total, f'{speed:.2f} it/s | {duration((total - done) / speed)} left', done == total)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._close()
        if is_main_process() and metrics:
            self.console.print(f'eval  {summary(metrics)}')
        if runner.iter < runner.max_iters:
            self._open('train', runner.max_iters, runner.iter)
        self.mark = time.perf_counter()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._close()

    def after_run(self, runner: Runner) -> None:
        self._close()

    # -- drawing

    def _open(self, name: str, total: int, done: int) -> None:
        self._close()
        if not is_main_process() or not sys.stderr.isatty():
            return
        text = TextColumn('{task.fields[text]}')
        columns = (TextColumn('{task.description}'), BarColumn(24), MofNCompleteColumn(), text)
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.start()
        self.task = self.bar.add_task(name, total=total, completed=done, text='')

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _show(self, name: str, done: int, total: int, text: str, final: bool) -> None:
        if not is_main_process():
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
        elif final or time.monotonic() - self.last_line > self.every:
            self.last_line = time.monotonic()
            self.console.print(f'{name} {done}/{total} | {text}', soft_wrap=True)


def summary(metrics: dict[str, float]) -> str:
    """The headline numbers of an evaluation."""
    wanted = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50', 'mIoU', 'mAcc', 'aAcc', 'mBIoU')
    named = {key.rsplit('/', 1)[-1]: value for key, value in metrics.items()}
    return ', '.join(f'{key.replace("mAP", "AP")} {named[key]:.3g}' for key in wanted if key in named)


def quieten(logger: logging.Logger) -> None:
    """What mmengine says goes to its log file only; warnings and errors still reach the terminal.

    What libraries warn of in their own use of each other does not.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(max(handler.level, logging.WARNING))
            if _users_should_see not in handler.filters:
                handler.addFilter(_users_should_see)


def _users_should_see(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in ('deprecated', 'The prefix is not set in metric class'))
