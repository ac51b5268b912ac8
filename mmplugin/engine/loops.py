"""ResumableIterBasedTrainLoop: resume an iteration-based run without loading the batches before."""

from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmplugin.errors import UserError


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
