"""Random numbers that depend only on the seed and the position in the run.

mmengine seeds every worker process once. The augmentation of an image then depends on the number of workers, and a
resumed run draws other augmentations than an uninterrupted one. Here every position in the stream of samples has its
own seed, which travels to the worker with the index, and every iteration starts with its own seed. A resumed run thus
repeats the uninterrupted one exactly, with any number of workers, and no random state has to be saved.
"""

import random
from collections.abc import Iterator, Sequence, Sized

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler


def combine_seeds(*numbers: int) -> int:
    """Return a 32-bit seed made of several numbers; neighboring numbers give unrelated seeds."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global random number generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeededIndex(int):
    """An index into a dataset that carries the seed of its augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SeededIndex':
        """Create an index with a seed."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # for pickle, on the way to a worker
        return int(self), self.seed


class SeededSampler(Sampler):
    """Sampler that shuffles like mmengine's, whose indices carry seeds, and which can start at any position.

    Args:
        dataset: The dataset to sample from.
        shuffle: Draw a new order in every pass over the dataset.
        seed: The same in all processes; mmengine passes the seed of the run.
        endless: Repeat forever, as iteration-based loops require, instead of one pass.
        repeats: Versions of an image in a row, each with its own augmentation and, with several processes, in another
            one (repeated augmentation, Hoffer et al., 2020). A pass has as many samples as before, of fewer images.
    """

    def __init__(
        self, dataset: Sized, shuffle: bool = True, seed: int | None = None, endless: bool = False, repeats: int = 1
    ):
        self.dataset, self.shuffle, self.endless, self.repeats = dataset, shuffle, endless, repeats
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next pass belongs to."""
        self.epoch = 0 if self.endless else epoch

    def start_at(self, position: int) -> None:
        """Skip the first ``position`` samples of this process in the endless stream."""
        self.start = position

    def _pass(self, number: int) -> Iterator[SeededIndex]:
        order: Sequence[int] = range(len(self.dataset))
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(self.seed + number)
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
        for position in range(len(order)):
            yield SeededIndex(order[position // self.repeats], combine_seeds(self.seed, number, position))

    def _one_epoch(self) -> Iterator[SeededIndex]:
        samples = list(self._pass(self.epoch))
        missing = len(self) * self.world_size - len(samples)
        samples += [samples[i % len(samples)] for i in range(missing)]  # the same number for every process
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
