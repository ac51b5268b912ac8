"""Time networks in turn: each part of a network where it runs, or the whole.

All networks run once before any runs again: whatever slows the machine for a while slows all of them.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from mmplugin.backbones import FAMILIES
from mmplugin.search.parts import Part, boundaries, parts_of

WARM_UP = 2
CLOCKS: dict[str, Callable[[], int]] = {'wall': time.perf_counter_ns, 'cpu': time.process_time_ns}
PartClock = Callable[[Part], float]  # milliseconds
Progress = Callable[[int, int], None]  # runs done, runs in total


class Timed(Protocol):
    """What can run in turn with others."""

    def times(self) -> list[float]:
        """Run once and return the milliseconds of each part, or of the whole as the only value."""


class Network:
    """A backbone with random weights that is ready to be timed.

    Args:
        family: 'v1', 'v2' or 'evit'.
        arch: Architecture.
        x: Images (B, 3, H, W); its device is that of the network.
        mode: 'eager' or 'fused'.
        clock: 'wall' or 'cpu'. On a GPU, its own clock is used.
        by_part: Time each part, else the whole.
    """

    def __init__(self, family: str, arch: dict, x: Tensor, mode: str, clock: str, by_part: bool):
        cls: Any = FAMILIES[family]
        backbone = cls(arch, drop_path_rate=0.0).to(x.device).eval()
        self.backbone = backbone.fuse() if mode == 'fused' else backbone
        self.x, self.marks = x, list[Any]()
        self.note = self._note_event if x.is_cuda else self._note_time
        self.now = CLOCKS[clock]
        if by_part:
            for _, module in boundaries(backbone)[1:]:
                module.register_forward_pre_hook(lambda module, args: self.note())

    def times(self) -> list[float]:
        """Run once and return the milliseconds of each part, or of the whole as the only value."""
        self.marks.clear()
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)  # the queue is empty: no part waits for earlier work
        self.note()
        self.backbone(self.x)
        self.note()
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
            return [start.elapsed_time(end) for start, end in pairwise(self.marks)]
        return [(end - start) / 1e6 for start, end in pairwise(self.marks)]

    def _note_time(self) -> None:
        self.marks.append(self.now())

    def _note_event(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)


class ClockedNetwork:
    """Stands for a network whose parts take what a function says. Nothing is built."""

    def __init__(self, family: str, arch: dict, clock: PartClock, by_part: bool):
        self.parts, self.clock, self.by_part = parts_of(family, arch), clock, by_part

    def times(self) -> list[float]:
        """Return the milliseconds of each part, or of the whole as the only value."""
        times = [float(self.clock(part)) for part in self.parts]
        return times if self.by_part else [sum(times)]


@torch.inference_mode()
def run_in_turn(
    networks: Sequence[Timed], rounds: int, seed: int, progress: Progress | None
) -> list[list[list[float]]]:
    """Return the times of each network: its rounds, each with the milliseconds of its parts.

    The order of the networks is another one in every round, so that none always follows the same one.
    """
    order, shuffle = list(range(len(networks))), random.Random(seed).shuffle
    warm_up = 0 if all(isinstance(network, ClockedNetwork) for network in networks) else WARM_UP
    found: list[list[list[float]]] = [[] for _ in networks]
    with _no_garbage_collection():
        for i in range(warm_up + rounds):
            shuffle(order)
            for j, index in enumerate(order):
                times = networks[index].times()
                if i >= warm_up:
                    found[index].append(times)
                if progress:
                    progress(i * len(order) + j + 1, (warm_up + rounds) * len(order))
    return found


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Let torch use a number of threads; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
