"""Loops that resume at any iteration, without loading the batches before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from mmplugin.errors import UserError
from mmplugin.hooks.finite_loss import image_paths
from mmplugin.text import some


@contextmanager
def _tiny_images_are_named(batch: Any) -> Iterator[None]:
    """Turn the error of a batch norm that sees a single value per channel into a message with the files of a batch."""
    try:
        yield
    except ValueError as error:
        if 'Expected more than 1 value per channel' not in str(error):
            raise
        raise UserError(
            f'{some(image_paths(batch), 8) or "a batch"}: resized to the size of this config, a feature map has one '
            'pixel, which batch norm cannot normalize. Train at a larger --size, with a larger --batch, or remove '
            'images that are this small or narrow'
        ) from error


class ResumableEpochBasedTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop, but it can resume in the middle of an epoch.

    The rest of the epoch equals that of an uninterrupted run if the sampler is a ``SeededSampler``.
    """

    def run_epoch(self) -> None:
        """Train one epoch, or the rest of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        for index, batch in enumerate(_without_first(self.dataloader, done), done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Train one iteration."""
        with _tiny_images_are_named(data_batch):
            super().run_iter(idx, data_batch)


def _without_first(loader: DataLoader, done: int) -> DataLoader:
    """Return a loader of one pass without its first batches. Samplers that group images by shape are possible."""
    if done == 0:
        return loader
    return DataLoader(
        loader.dataset,
        batch_sampler=list(loader.batch_sampler or ())[done:],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )


class ResumableIterBasedTrainLoop(IterBasedTrainLoop):
    """mmengine's loop, but resuming moves the sampler to its position; requires ``SeededSampler(endless=True)``."""

    def run(self) -> nn.Module:
        """Train, and return the model."""
        sampler = self.dataloader.sampler
        if not getattr(sampler, 'endless', False):
            raise UserError(
                f'ResumableIterBasedTrainLoop cannot resume a {type(sampler).__name__}; '
                "set train_dataloader.sampler to dict(type='SeededSampler', shuffle=True, endless=True)"
            )
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        sampler.start_at(self._iter * self.dataloader.batch_size)
        batches = iter(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batch: Any) -> None:
        """Train one iteration."""
        with _tiny_images_are_named(data_batch):
            super().run_iter(data_batch)
