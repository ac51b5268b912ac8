"""Randomness as a function of the seed and the position in the run, and of nothing else.

mmengine seeds every worker process once. What an image goes through then depends on the number of workers, and a run
that was stopped and resumed draws other augmentations than one that was not. Here each place in the stream of samples
carries a seed of its own into the worker, and each iteration starts with a seed of its own, so that a resumed run
repeats exactly what the other one did, with any number of workers, and nothing needs saving.
"""

import random
from collections.abc import Iterator, Sized

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler


def combine_seeds(*numbers: int) -> int:
    """A 32-bit seed out of several numbers, different for neighbours."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeededIndex(int):
    """An index into a dataset that carries the seed for its augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SeededIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # for pickle: on its way to a worker
        return int(self), self.seed


class SeededSampler(Sampler):
    """Shuffles like mmengine's samplers; its indices carry seeds, and it can start anywhere.

    Args:
        dataset: What to sample from.
        shuffle: A new order in each pass over the dataset.
        seed: The same in all processes; mmengine passes the run's own.
        endless: Pass after pass without an end, as iteration-based loops want it; one pass if False.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, endless: bool = False):
        self.dataset, self.shuffle, self.endless = dataset, shuffle, endless
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.endless else epoch

    def start_at(self, position: int) -> None:
        """The next iteration begins as if this process had already had ``position`` samples of the endless stream."""
        self.start = position

    def _pass(self, number: int) -> Iterator[SeededIndex]:
        order = range(len(self.dataset))
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(self.seed + number)
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
        for place, index in enumerate(order):
            yield SeededIndex(index, combine_seeds(self.seed, number, place))

    def _one_epoch(self) -> Iterator[SeededIndex]:
        samples = list(self._pass(self.epoch))
        missing = len(self) * self.world_size - len(samples)
        samples += [samples[i % len(samples)] for i in range(missing)]  # every process gets as many
        yield from samples[self.rank :: self.world_size]

    def _stream(self) -> Iterator[SeededIndex]:
        size = len(self.dataset)
        position = self.rank + self.start * self.world_size
        number, samples = -1, []
        while True:
            if position // size != number:
                number = position // size
                samples = list(self._pass(number))
            yield samples[position % size]
            position += self.world_size

    def __iter__(self) -> Iterator[SeededIndex]:
        return self._stream() if self.endless else self._one_epoch()

    def __len__(self) -> int:
        return len(self.dataset) if self.endless else -(-len(self.dataset) // self.world_size)
