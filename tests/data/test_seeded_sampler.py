"""Random numbers of training: one seed per position, for any number of workers and processes."""

import pickle

import pytest
import torch

from mmplugin.data.seeded_sampler import SeededSampler
from mmplugin.data.transforms import SeedSample


def _take(count: int, start: int = 0, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    sampler = SeededSampler(range(10), seed=3, endless=True)
    sampler.rank, sampler.world_size = rank, world_size
    sampler.start_at(start)
    return [(int(index), index.seed) for index, _ in zip(sampler, range(count), strict=False)]


def test_the_endless_stream_is_shuffled_in_every_pass():
    stream = _take(40)
    passes = [[index for index, _ in stream[start : start + 10]] for start in range(0, 40, 10)]
    assert all(sorted(indices) == list(range(10)) != indices for indices in passes)
    assert passes[0] != passes[1]
    assert len({seed for _, seed in stream}) == 40


@pytest.mark.parametrize(('start', 'rank', 'world_size'), [(25, 0, 1), (7, 1, 2)])
def test_the_stream_can_start_anywhere(start: int, rank: int, world_size: int):
    expected = _take(40)[rank::world_size][start : start + 12]
    assert _take(12, start, rank, world_size) == expected


def test_epochs_are_split_into_parts_of_equal_length():
    sampler = SeededSampler(range(5), seed=0)
    sampler.set_epoch(2)
    alone = [int(index) for index in sampler]
    parts = []
    for rank in (0, 1):
        sampler.rank, sampler.world_size = rank, 2
        parts.append([int(index) for index in sampler])
    assert [len(part) for part in parts] == [len(sampler)] * 2
    assert [parts[i % 2][i // 2] for i in range(5)] == alone


def test_the_seed_reaches_the_worker():
    index = next(iter(SeededSampler(range(9), seed=1)))
    copied = pickle.loads(pickle.dumps(index))
    assert (int(copied), copied.seed) == (int(index), index.seed)
    drawn = []
    for _ in range(2):
        SeedSample()({'sample_idx': copied})
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
