"""Measure time, memory saved for backward, peak memory and operators.

``torch.utils.benchmark.Timer`` runs one statement after the other. Here the sides of a comparison alternate: whatever
slows the machine for a while slows all of them, and each round gives one ratio.
"""

import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

from mmplugin.benchmark.results import Measurement, OperatorShare, Size
from mmplugin.benchmark.subjects import Subject, apply_mode_, build, kind_of, short_name
from mmplugin.layers import freeze_norms

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Key = TypeVar('Key')
WARM_UP = 2
EXTRA, EXTRA_SECONDS = 4, 5.0  # short calls run up to 4 times the rounds, for up to 5 seconds
OPERATORS = 12  # operators of a training step that are listed


class Side(NamedTuple):
    """One side of a comparison: a model, how it runs, and whether the others are compared with it."""

    model: str
    mode: str = 'eager'
    is_baseline: bool = False


@dataclass(frozen=True)
class Settings:
    """The conditions of all measurements."""

    batches: Sequence[int] = (1,)  # images per inference
    train_batch: int = 2
    rounds: int = 10
    clock: str = 'wall'  # or cpu: the processor time of all threads
    device: str = 'cpu'
    threads: int | None = None  # None is torch's own choice
    cores: int | None = None  # that the process is pinned to; None means all
    freeze_norms: bool = True  # of bare backbones in training; a config decides for itself


def measure(metric: str, settings: Settings, sides: Sequence[Side], size: Size) -> list:
    """Measure one metric of all sides in a new process, and return a list of records.

    A process that has run for long has fragmented memory, which slows later models, and one that is killed would take
    all other figures with it. Peak memory takes one process per side: memory that one side frees would serve the other.

    Raises:
        BrokenProcessPool: If the process is killed.
    """
    if metric != 'peak':
        return in_new_process(METRICS[metric], settings, sides, size)
    peaks = {side: [in_new_process(peak_memory, settings, side, size)] for side in sides}
    return compare(metric, size, settings.batches[0], peaks)


def in_new_process(function: Callable, *args: Any) -> Any:
    """Call ``function(settings, ...)`` in a new process, with the threads and the device of the settings.

    A terminal sends Ctrl-C to all processes. The new one ignores it, and is ended by this one, which prints a line.
    """
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        with _ctrl_c_ignored():  # inherited by the new process
            answer = pool.submit(_with_settings, function, *args)
            started = set(multiprocessing.active_children()) - others
        try:
            return answer.result()
        except KeyboardInterrupt:
            for process in started:
                process.kill()
            raise


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _with_settings(function: Callable, settings: Settings, *args: object) -> Any:
    if settings.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-settings.cores :])
    if ':' in settings.device:
        torch.cuda.set_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # torch.compile traces through caches of index tables. That is intended: their results are constants.
    warnings.filterwarnings('ignore', message='Dynamo detected a call to a `functools.lru_cache`')
    return function(settings, *args)


def inference(settings: Settings, sides: Sequence[Side], size: Size) -> list[Measurement]:
    """Time inference."""
    calls = {side: apply_mode_(build_side(settings, side, size), side.mode) for side in sides}
    records = []
    for batch in settings.batches:
        x = images(batch, size, settings.device)
        with torch.inference_mode():
            times = interleave({side: partial(call, x) for side, call in calls.items()}, settings)
        records += compare('infer', size, batch, times)
    return records


def training(settings: Settings, sides: Sequence[Side], size: Size) -> list[Measurement]:
    """Time forward and backward. The optimizer is omitted, because its part is the same for all."""
    steps = {side: _training_step(settings, side, size) for side in sides}
    return compare('train', size, settings.train_batch, interleave(steps, settings))


def memory_saved(settings: Settings, sides: Sequence[Side], size: Size) -> list[Measurement]:
    """Count the bytes that autograd saves in one training step."""
    x = images(settings.train_batch, size, settings.device)
    subjects = {side: build_side(settings, side, size, train=True) for side in sides}
    saved = {side: [saved_for_backward(subject.model, subject.loss, x)] for side, subject in subjects.items()}
    return compare('saved', size, settings.train_batch, saved)


def peak_memory(settings: Settings, side: Side, size: Size) -> float:
    """Return the highest memory during one inference, in bytes beyond what the loaded model took before it."""
    call = apply_mode_(build_side(settings, side, size), side.mode)
    warm_up = apply_mode_(build_side(settings, Side('v2_s0'), (64, 64)), 'eager')
    x = images(settings.batches[0], size, settings.device)
    with torch.inference_mode():
        warm_up(images(1, (64, 64), settings.device))  # memory that libraries take on first use counts for no side
        before = _restart_peak(settings.device)
        call(x)
        return max(0, _peak(settings.device) - before)


def operator_profile(settings: Settings, sides: Sequence[Side], size: Size) -> list[OperatorShare]:
    """Find the operators with the largest shares of one training step. Operators that they call are not included."""
    step, on_gpu = _training_step(settings, sides[0], size), settings.device != 'cpu'
    step()
    with _profiler(on_gpu) as record:
        step()
    events = record.key_averages()
    times = [event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events]
    name, total = short_name(sides[0].model), max(1, sum(times))
    shares = [
        OperatorShare(name, size, settings.train_batch, event.key, event.count, own / total)
        for event, own in zip(events, times, strict=True)
    ]
    return sorted(shares, key=lambda share: -share.share)[:OPERATORS]


METRICS: dict[str, Callable] = {
    'infer': inference,
    'train': training,
    'saved': memory_saved,
    'peak': peak_memory,
    'profile': operator_profile,
}


def interleave(
    calls: Mapping[Key, Callable[[], object]], settings: Settings, after_round: Callable[[], object] = bool
) -> dict[Key, list[float]]:
    """Time all calls, one after the other, for a number of rounds. Return milliseconds."""
    times: dict[Key, list[float]] = {side: [] for side in calls}
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
        after_round()
    done, start, most = 0, time.perf_counter(), EXTRA * settings.rounds
    while done < settings.rounds or (done < most and time.perf_counter() - start < EXTRA_SECONDS):
        for side, call in calls.items():
            times[side].append(milliseconds(call, settings))
        done += 1
        after_round()
    return times


def milliseconds(call: Callable[[], object], settings: Settings) -> float:
    """Return the time of one call."""
    now = clock(settings)
    start = now()
    call()
    return (now() - start) * 1e3


def clock(settings: Settings) -> Callable[[], float]:
    """Return the function that reads the clock, in seconds."""
    return time.process_time if settings.clock == 'cpu' else timer  # torch's timer waits for the GPU


def compare(metric: str, size: Size, batch: int, values: Mapping[Side, Sequence[float]]) -> list[Measurement]:
    """Return a record per side, with quartiles of its values and of its ratios to the baseline within a round."""
    baseline = next((side for side in values if side.is_baseline), None)
    records = []
    for side, own in values.items():
        low, value, high = quartiles(own)
        record = Measurement(metric, short_name(side.model), size, batch, side.mode, value, low, high)
        record.is_baseline = side.is_baseline
        if baseline and not side.is_baseline:
            ratios = [a / b for a, b in zip(own, values[baseline], strict=True)]
            record.ratio_low, record.ratio, record.ratio_high = quartiles(ratios)
        records.append(record)
    return records


def quartiles(values: Sequence[float]) -> Sequence[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [*values] * 3


def saved_for_backward(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return the bytes that autograd saves between forward and backward, beyond parameters and buffers.

    Each storage counts once and in full, however many views of it are saved.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = loss(x)  # keeps the graph alive, so that no address is used twice while counting
    del result
    return sum(saved.values())


def build_side(settings: Settings, side: Side, size: Size, train: bool = False) -> Subject:
    """Build the model of a side, with the same random weights every time."""
    torch.manual_seed(0)
    subject = build(side.model, *size)
    subject.model.to(settings.device).train(train)
    if settings.freeze_norms and kind_of(side.model) == 'backbone':
        freeze_norms(subject.model)
    return subject


def _training_step(settings: Settings, side: Side, size: Size) -> Callable[[], None]:
    subject, x = build_side(settings, side, size, train=True), images(settings.train_batch, size, settings.device)

    def step() -> None:
        subject.model.zero_grad(set_to_none=True)
        subject.loss(x).backward()

    return step


def images(batch: int, size: Size, device: str) -> Tensor:
    """Return random images, always the same ones."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)


def allocated_peak(call: Callable[[], object], device: str) -> int:
    """Return the most bytes that torch holds at once during a call, beyond what it held before.

    It counts tensors, so that many models can be measured in one process. Scratch memory of libraries is not included,
    unlike in ``peak_memory``.
    """
    if device != 'cpu':
        before = _restart_peak(device)
        call()
        return _peak(device) - before
    with _profiler(profile_memory=True) as record:
        call()
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]')
    return max(0, *accumulate(change for _, change in changes))


def _profiler(on_gpu: bool = False, profile_memory: bool = False) -> profile:
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # or some versions print that they start and stop
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    return profile(activities=activities, profile_memory=profile_memory)


def _restart_peak(device: str) -> int:
    """Forget the peak so far and return the memory in use. On a CPU, only Linux allows that."""
    clear = Path('/proc/self/clear_refs')
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats(device)
    elif clear.exists():
        clear.write_text('5')
    return _peak(device)


def _peak(device: str) -> int:
    if device != 'cpu':
        return torch.cuda.max_memory_allocated(device)
    status = Path('/proc/self/status')
    if status.exists():
        return int(status.read_text().partition('VmHWM:')[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
