"""WarmStartHook: pretrain a backbone for a minute or two on crops of single objects, for trials without weights."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from mmplugin.data.seeded_sampler import combine_seeds, seed_everything
from mmplugin.data.synthetic import mini_crops
from mmplugin.data.synthetic.scene import OBJECT_NAMES
from mmplugin.hooks.layer_scale import FROM_SCRATCH, set_layer_scales_
from mmplugin.text import duration

T = TypeVar('T')
GRID = 4  # crops per side of an image


class WarmStartHook(Hook):
    """Train the backbone to classify crops of the built-in set before the first iteration; skipped when resuming.

    The crops form images of 4 x 4 cells, and every cell is classified. On a CPU this takes half the time of as many
    small images, and the backbone sees feature maps of the size that follows.

    Args:
        steps: Number of batches. Every crop is used twice, the second time mirrored, because drawing takes time.
        batch_size: Crops per step, a multiple of 16.
        lr: Peak learning rate.
        layer_scale: Initial value of all layer scales.
    """

    priority = 'HIGH'

    def __init__(self, steps: int = 200, batch_size: int = 32, lr: float = 2e-3, layer_scale: float = FROM_SCRATCH):
        self.steps, self.batch_size, self.lr, self.layer_scale = steps, batch_size, lr, layer_scale

    def before_train(self, runner: Runner) -> None:
        """Pretrain the backbone, unless the run is resumed."""
        if runner.iter > 0:
            return
        seed_everything(combine_seeds(runner.seed or 0, 2))
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        started = time.perf_counter()
        accuracy = self.pretrain_(model.backbone, model.data_preprocessor.mean, model.data_preprocessor.std)
        for value in model.backbone.state_dict().values():
            broadcast(value)  # the processes differ by rounding
        if is_main_process():
            seen, took = self.steps * self.batch_size, duration(time.perf_counter() - started)
            Console(stderr=True, highlight=False).print(
                f'warm start | {seen} crops in {took}, accuracy on the last batches {accuracy:.0%}', soft_wrap=True
            )

    def _crops(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of RGB images and their labels, then the same batches mirrored."""
        drawn: list[tuple[Tensor, Tensor]] = []
        for start in range(0, (self.steps + 1) // 2 * self.batch_size, self.batch_size):
            crops, classes = mini_crops(self.batch_size, start=start)
            drawn.append((_in_grid(torch.from_numpy(crops)), torch.from_numpy(classes)))
            yield drawn[-1]
        for images, labels in drawn[: self.steps // 2]:
            yield images.flip(-1), labels.view(-1, GRID).flip(1).flatten()  # mirroring moves the cells, too

    def pretrain_(self, backbone: nn.Module, mean: Tensor, std: Tensor) -> float:
        """Train a backbone and return the accuracy on the last batches.

        Args:
            backbone: The backbone, changed in place.
            mean: (3, 1, 1), of RGB images.
            std: (3, 1, 1), of RGB images.
        """
        backbone.train()
        set_layer_scales_(backbone, self.layer_scale)
        head = nn.LazyLinear(len(OBJECT_NAMES)).to(mean.device)
        head(self._pooled(backbone, mean.new_zeros(1, 3, 256, 256)))
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        accuracies = []
        for images, labels in self._with_bar(self._crops()):
            images, labels = images.to(mean.device), labels.to(mean.device)
            scores = head(self._pooled(backbone, (images - mean) / std))
            optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            accuracies.append((scores.argmax(1) == labels).float().mean().item())
        return sum(accuracies[-20:]) / max(1, len(accuracies[-20:]))

    def _with_bar(self, batches: Iterable[T]) -> Iterable[T]:
        """Show a progress bar if there is a terminal."""
        show = is_main_process() and sys.stderr.isatty()
        console = Console(stderr=True)
        return track(batches, 'warm start', self.steps, console=console, transient=True, disable=not show)

    @staticmethod
    def _pooled(backbone: nn.Module, images: Tensor) -> Tensor:
        """Return the mean of every level in every cell: (crops, channels of all levels)."""
        cells = [F.adaptive_avg_pool2d(level, GRID) for level in backbone(images)]
        return torch.cat(cells, 1).permute(0, 2, 3, 1).flatten(0, 2)

    def _factor(self, step: int) -> float:
        return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def _in_grid(crops: Tensor) -> Tensor:
    """Arrange crops (N * 16, size, size, 3) as images (N, 3, 4 * size, 4 * size)."""
    size = crops.shape[1]
    cells = crops.view(-1, GRID, GRID, size, size, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, GRID * size, GRID * size)
