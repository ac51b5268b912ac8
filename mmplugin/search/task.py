"""A model and its training data, for scores and training steps that depend on nothing but seeds."""

import copy
import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmplugin import stack
from mmplugin.config_edits import is_segmentation
from mmplugin.data.load_errors import name_files_in_errors_
from mmplugin.data.seeded_sampler import combine_seeds, seed_everything
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError

HOLD_OUT, TRAINING, STEP = range(3)  # streams of random numbers
WARM_UP = 0.1  # share of the steps in which the learning rate rises


def rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate: it rises for a tenth of the steps, and falls to zero as a cosine."""
    return min(1.0, (step + 1) / max(1, round(WARM_UP * steps))) * 0.5 * (1 + math.cos(math.pi * step / steps))


@contextmanager
def warnings_only() -> Iterator[None]:
    """Let mmengine log warnings and errors only: it logs every parameter that it initializes."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class Task:
    """The model of a config, a hold-out of its training images, and training steps on the others.

    Validation images are not used: they stay unseen for the final measurement.

    Args:
        cfg: Config, adapted to its data.
        images: Number of training images that networks are compared on.
        seed: Seed of the hold-out, of augmentations and of training.
        device: Where the model runs.
    """

    def __init__(self, cfg: Config, images: int, seed: int, device: str = 'cpu'):
        self.cfg, self.seed, self.device = cfg, seed, device
        seed_everything(seed)
        model: Any = build_model(copy.deepcopy(cfg))
        with warnings_only():
            model.init_weights()
        self.model: Any = model.to(device)
        stack.import_quietly(f'{cfg.default_scope}.datasets')
        with DefaultScope.overwrite_default_scope(cfg.default_scope), redirect_stdout(io.StringIO()):
            self.dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)  # pycocotools prints
        name_files_in_errors_(self.dataset)
        self.batch_size = int(cfg.train_dataloader.batch_size)
        if len(self.dataset) < images + self.batch_size:
            raise UserError(
                f'the training set has {len(self.dataset)} images with annotations; to compare networks on {images} '
                f'and to train with batches of {self.batch_size}, it needs {images + self.batch_size}; use a smaller '
                '--images'
            )
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(seed)).tolist()
        self.held_out, self.training = order[:images], order[images:]

    def hold_out(self) -> Iterator[Any]:
        """Yield the batches that networks are compared on, always the same ones."""
        for start in range(0, len(self.held_out), self.batch_size):
            yield self._batch(self.held_out[start : start + self.batch_size], HOLD_OUT, start)

    def batches(self, first: int, count: int) -> Iterator[Any]:
        """Yield training batches, by their number in the stream of this seed."""
        for number in range(first, first + count):
            seed_everything(combine_seeds(self.seed, TRAINING, number))
            chosen = torch.randint(len(self.training), (self.batch_size,)).tolist()
            yield self._batch([self.training[i] for i in chosen], TRAINING, number)

    def _batch(self, indices: Sequence[int], stream: int, number: int) -> Any:
        samples = []
        for position, index in enumerate(indices):
            seed_everything(combine_seeds(self.seed, stream, number, position))
            samples.append(self.dataset[index])
        return pseudo_collate(samples)

    def loss(self, batch: Any, number: int = 0) -> Tensor:
        """Return the training loss of a batch. Random numbers in the heads depend on the seed and ``number`` only."""
        seed_everything(combine_seeds(self.seed, STEP, number))
        data = self.model.data_preprocessor(batch, True)
        return self.model.parse_losses(self.model(**data, mode='loss'))[0]

    @torch.no_grad()
    def score(self) -> float:
        """Return the mean loss on the hold-out."""
        self.model.eval()
        losses = [float(self.loss(batch)) for batch in self.hold_out()]
        self.model.train()
        return sum(losses) / len(losses)

    def train(self, first: int, steps: int, lr_factor: float = 1.0) -> Iterator[float]:
        """Train with the optimizer of the config, and yield the loss of each step.

        Args:
            first: Number of the first batch.
            steps: Number of steps.
            lr_factor: Factor of the learning rate of the config.
        """
        self.model.train()
        optimizer = build_optim_wrapper(self.model, copy.deepcopy(self.cfg.optim_wrapper))
        rates = [group['lr'] * lr_factor for group in optimizer.param_groups]
        for step, batch in enumerate(self.batches(first, steps)):
            factor = rate_factor(step, steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group['lr'] = rate * factor
            loss = self.loss(batch, first + step)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(
                    f'the loss is {value} in training step {step + 1} of {steps}; use a smaller learning rate: '
                    f'--cfg-options optim_wrapper.optimizer.lr={rates[0] / 3:.1g}'
                )
            optimizer.update_params(loss)
            yield value

    @torch.no_grad()
    def recalibrate_(self, first: int, batches: int) -> None:
        """Compute the statistics of all norms that train again, as means over batches."""
        self.model.train()
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.training]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        for batch in self.batches(first, batches):
            self.loss(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def example(self, size: Sequence[int], batch: int) -> Tensor:
        """Return images of the hold-out, resized and normalized: (batch, 3, height, width)."""
        data = self.model.data_preprocessor(next(self.hold_out()), True)
        inputs = nn.functional.interpolate(data['inputs'], size=tuple(size), mode='bilinear')
        return inputs[torch.arange(batch) % len(inputs)].contiguous()

    @property
    def segmentation(self) -> bool:
        """Whether the model is a segmentor."""
        return is_segmentation(self.cfg)
