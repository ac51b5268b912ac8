"""FiniteLossHook: training stops at the first loss that is NaN or infinite, before it can destroy a checkpoint."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmplugin.errors import UserError
from mmplugin.text import some


class FiniteLossHook(Hook):
    """Stop on a non-finite loss and name the images of its batch; refuse to save non-finite weights.

    Reading a loss waits for the GPU, so losses are read every ``interval`` iterations and before a checkpoint is saved.

    Args:
        interval: Iterations between two reads.
    """

    priority = 'VERY_HIGH'  # before the hooks that save, evaluate or average

    def __init__(self, interval: int = 10):
        self.interval = interval
        self._pending: deque[tuple[int, Tensor, list[str]]] = deque()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping | None = None
    ) -> None:
        """Note whether the losses are finite, and read what was noted if it costs nothing, or is due."""
        losses = [value.detach() for value in (outputs or {}).values() if isinstance(value, Tensor)]
        finite = torch.stack([torch.isfinite(value).all() for value in losses]).all() if losses else torch.tensor(True)
        self._pending.append((runner.iter + 1, finite, image_paths(data_batch)))
        if not _takes_time(finite) or len(self._pending) >= self.interval:
            self._check(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Read the last losses of an epoch."""
        self._check(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save weights that are not finite."""
        self._check(runner)
        broken = [
            name
            for name, value in checkpoint['state_dict'].items()
            if value.is_floating_point() and not torch.isfinite(value).all()
        ]
        if broken:
            raise UserError(
                f'{len(broken)} weights are NaN or infinite after iteration {runner.iter + 1} ({some(broken)}). '
                f'Nothing was saved, earlier checkpoints in {runner.work_dir} are intact. {ADVICE}'
            )

    def _check(self, runner: Runner) -> None:
        while self._pending:
            iteration, finite, paths = self._pending.popleft()
            if not finite:
                raise UserError(
                    f'the loss is NaN or infinite at iteration {iteration}; its batch: {some(paths, 8) or "unknown"}. '
                    f'Training stopped, earlier checkpoints in {runner.work_dir} are intact. {ADVICE}'
                )


ADVICE = 'Lower the learning rate (--cfg-options optim_wrapper.optimizer.lr=...), or check these images with check-data'


def _takes_time(value: Tensor) -> bool:
    """Whether reading a value waits for another device."""
    return value.device.type != 'cpu'


def image_paths(data_batch: Any) -> list[str]:
    """The image files of a batch, as far as its samples name them."""
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, Mapping) else ()
    return [str(path) for sample in samples if (path := getattr(sample, 'img_path', None))]
