"""ProgressHook: losses, speed, wait for data and remaining time in one line."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmplugin.text import duration


class ProgressHook(Hook):
    """Show a progress bar on a terminal, and a line every few seconds elsewhere.

    All numbers come from mmengine's ``IterTimerHook`` and ``RuntimeInfoHook``. mmengine's own lines, which are longer,
    go to the log file only.

    Args:
        every: Seconds between two lines without a terminal.
        window: Iterations over which times and losses are averaged.
    """

    priority = 'LOWEST'  # after the hooks that measure

    def __init__(self, every: float = 20.0, window: int = 50):
        self.every, self.window = every, window
        self.console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        self.last_line = 0.0

    def before_run(self, runner: Runner) -> None:
        """Send mmengine's lines to the log file only."""
        only_warnings_on_terminal(runner.logger)

    def before_train(self, runner: Runner) -> None:
        """Open the bar of the training."""
        self._open('train', runner.max_iters, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Show losses and speed."""
        losses = [key for key in outputs or {} if key.startswith('loss')]
        means = {key: self._mean(runner, f'train/{key}') for key in losses}
        text = ' '.join(f'{key.removeprefix("loss_")} {value:.3f}' for key, value in means.items())
        self._show(runner, 'train', runner.iter + 1, runner.max_iters, f'{text} | ')

    def before_val_epoch(self, runner: Runner) -> None:
        """Replace the bar of the training by one of the validation."""
        self._open('val', len(runner.val_dataloader), 0)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Show the speed."""
        self._show(runner, 'val', batch_idx + 1, len(runner.val_dataloader))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the headline numbers, and go back to the training."""
        self.close()
        text = summary(metrics or {})
        if is_main_process() and text:
            self.console.print(f'val {text}')
        if runner.iter < runner.max_iters:
            self._open('train', runner.max_iters, runner.iter)

    def before_test_epoch(self, runner: Runner) -> None:
        """Open the bar of the test."""
        self._open('test', len(runner.test_dataloader), 0)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Show the speed."""
        self._show(runner, 'test', batch_idx + 1, len(runner.test_dataloader))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar."""
        self.close()

    def after_run(self, runner: Runner) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, which shows the cursor of the terminal again."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _mean(self, runner: Runner, name: str) -> float:
        return float(runner.message_hub.get_scalar(name).mean(self.window))

    def _open(self, name: str, total: int, done: int) -> None:
        self.close()
        if not is_main_process() or not sys.stderr.isatty():
            return
        text = TextColumn('{task.fields[text]}')
        columns = (TextColumn('{task.description}'), BarColumn(24), MofNCompleteColumn(), text)
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.start()
        self.task = self.bar.add_task(name, total=total, completed=done, text='')

    def _show(self, runner: Runner, mode: str, done: int, total: int, text: str = '') -> None:
        if not is_main_process():
            return
        due = done == total or time.monotonic() - self.last_line > self.every
        if self.bar is None and not due:
            return
        seconds, waiting = self._mean(runner, f'{mode}/time'), self._mean(runner, f'{mode}/data_time')
        text += f'{1 / max(seconds, 1e-9):.2f} it/s, {waiting / max(seconds, 1e-9):.0%} waiting for data'
        text += f' | {duration(seconds * (total - done))} left'
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
        else:
            self.last_line = time.monotonic()
            self.console.print(f'{mode} {done}/{total} | {text}', soft_wrap=True)


def summary(metrics: dict[str, float]) -> str:
    """Return the headline numbers of a validation in one line."""
    wanted = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50', 'mIoU', 'mAcc', 'aAcc', 'mBIoU')
    values = {key.rpartition('/')[2]: value for key, value in metrics.items()}
    return ', '.join(f'{key.replace("mAP", "AP")} {values[key]:.3g}' for key in wanted if key in values)


def only_warnings_on_terminal(logger: logging.Logger) -> None:
    """Send information to the log file only; the terminal gets warnings about the user's run, and errors."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(max(handler.level, logging.WARNING))
            if _concerns_the_run not in handler.filters:
                handler.addFilter(_concerns_the_run)


def _concerns_the_run(record: logging.LogRecord) -> bool:
    """Drop warnings about how the libraries use each other."""
    return not any(text in record.getMessage() for text in ('deprecated', 'The prefix is not set in metric class'))
