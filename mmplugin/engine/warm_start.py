"""A pretraining of a minute or two for trials without weights: the backbone first learns to name single things."""

import math
import time

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from mmplugin.data.mini import mini_crops
from mmplugin.data.scene import THING_NAMES
from mmplugin.engine.sampling import mix, seed_everything
from mmplugin.hooks.progress import duration


@HOOKS.register_module()
class WarmStartHook(Hook):
    """Before the first iteration, trains the backbone to classify crops of the built-in set; a resumed run skips it.

    Args:
        steps: Batches to learn from; no crop comes twice.
        batch_size: Crops a step.
        lr: Highest learning rate.
    """

    priority = 'HIGH'

    def __init__(self, steps: int = 150, batch_size: int = 32, lr: float = 1e-3):
        self.steps, self.batch_size, self.lr = steps, batch_size, lr

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        seed_everything(mix(runner.seed or 0, 2))
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        started = time.perf_counter()
        accuracy = self._train(model.backbone, model.data_preprocessor)
        for value in model.backbone.state_dict().values():
            broadcast(value)  # all processes did the same work, up to rounding
        if is_main_process():
            seen, took = self.steps * self.batch_size, duration(time.perf_counter() - started)
            Console(stderr=True, highlight=False).print(
                f'warm start | {seen} crops in {took}, the last ones named right: {accuracy:.0%}', soft_wrap=True
            )

    def _batch(self, step: int, preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
        crops, labels = mini_crops(self.batch_size, start=step * self.batch_size)
        images = torch.from_numpy(crops).permute(0, 3, 1, 2).to(preprocessor.mean.device)  # RGB, as the statistics are
        return (images - preprocessor.mean) / preprocessor.std, torch.from_numpy(labels).to(images.device)

    def _train(self, backbone: nn.Module, preprocessor: nn.Module) -> float:
        backbone.train()
        images, _ = self._batch(0, preprocessor)
        with torch.no_grad():
            width = self._pooled(backbone, images).shape[1]
        head = nn.Linear(width, len(THING_NAMES)).to(images.device)
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        right = []
        for step in range(self.steps):
            images, labels = self._batch(step, preprocessor)
            scores = head(self._pooled(backbone, images))
            optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            right.append((scores.argmax(1) == labels).float().mean().item())
        return sum(right[-20:]) / max(1, len(right[-20:]))

    @staticmethod
    def _pooled(backbone: nn.Module, images: Tensor) -> Tensor:
        return torch.cat([level.mean((2, 3)) for level in backbone(images)], 1)

    def _factor(self, step: int) -> float:
        return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
