"""Time, memory kept for backward, peak memory, operators. Everything that is compared runs in turn, in one process."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmplugin.benchmark.subjects import Runnable, resolve, variant
from mmplugin.errors import UserError

WARM_UP = 2
MOST_ROUNDS, ENOUGH_SECONDS = 40, 5.0  # beyond the rounds asked for, until one of them is reached


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else values * 3
    return dict(median=median, low=low, high=high)


def paired_ratios(ours: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Each round gives one ratio: what slows a machine for a while slows both sides of it."""
    return spread([a / b for a, b in zip(ours, others, strict=True)])


def milliseconds(call: Callable[[], object], clock: str, device: torch.device) -> float:
    """Wall clock, or the processor time of all threads. A GPU is measured by its own events, its queue empty before."""
    if device.type == 'cuda':
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    now = time.process_time if clock == 'cpu' else time.perf_counter
    start = now()
    call()
    return (now() - start) * 1e3


def in_turn(
    calls: dict[str, Callable[[], object]], rounds: int, clock: str, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of every call, one after the other, ``rounds`` times over; short ones more often, which is cheap."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    done, started = 0, time.perf_counter()
    while done < rounds or (done < MOST_ROUNDS and time.perf_counter() - started < ENOUGH_SECONDS):
        for name, call in calls.items():
            times[name].append(milliseconds(call, clock, device))
        done += 1
    return times


def kept_bytes(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward, beyond parameters and buffers.

    Each storage counts once and whole, however many views of it are kept.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = loss(x)  # alive until counted, so that no address is given away twice
    del result
    return sum(kept.values())


def training_step(runnable: Runnable, x: Tensor) -> None:
    """Forward and backward; the optimizer's part is the same for all and left out."""
    for parameter in runnable.model.parameters():
        parameter.grad = None
    runnable.loss(x).backward()


def operator_shares(step: Callable[[], object], device: torch.device) -> list[tuple[str, int, float]]:
    """Where one training step goes: (operator, calls, share of all operators' own time), the longest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == 'cuda' else [])]
    step()
    with profile(activities=activities) as record:
        step()
    events = record.key_averages()
    times = [event.self_device_time_total if device.type == 'cuda' else event.self_cpu_time_total for event in events]
    shares = [(event.key, event.count, time / max(1, sum(times))) for event, time in zip(events, times, strict=True)]
    return sorted(shares, key=lambda share: -share[2])


def image(batch: int, height: int, width: int, device: torch.device | str = 'cpu') -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)


def built(name: str, height: int, width: int, device: torch.device | str, frozen: bool = True) -> Runnable:
    torch.manual_seed(0)
    runnable = resolve(name, frozen).build(height, width)
    runnable.model.to(device)
    return runnable


def peak_bytes(name: str, size: tuple[int, int], batch: int, mode: str, device: str) -> int:
    """Highest memory during one inference, beyond what was there before it.

    On a CPU that is a process of its own: the high-water mark of a process never falls.
    """
    if device != 'cpu':
        return _peak_here(name, size, batch, mode, device)
    request = json.dumps([name, size, batch, mode, device, torch.get_num_threads()])
    root = str(Path(__file__).parents[2])
    program = f'import sys; sys.path.insert(0, {root!r}); from {__name__} import child; child()'
    command = [sys.executable, '-c', program, request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        raise UserError(
            f'peak memory of {name} at {size[0]}x{size[1]}: its process ended with {done.returncode} ({last}). '
            'If memory ran out (-9), give smaller --peak-size or --batch; else leave peak out of --what'
        )
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Answers one request of ``peak_bytes``."""
    *request, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    sys.stdout.write(f'\n{json.dumps(_peak_here(*request))}\n')


def _peak_here(name: str, size: Sequence[int], batch: int, mode: str, device: str) -> int:
    runnable, warm_up = built(name, *size, device), built('v2_s0', 64, 64, 'cpu').model.eval()
    x = image(batch, *size, device)
    with torch.inference_mode():
        call = variant(runnable, mode)
        if device != 'cpu':
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            call(x)
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
        # what the first convolution of a process loads and allocates once belongs to neither side
        warm_up(image(1, 64, 64))
        before = _restart_high_water()
        call(x)
        return max(0, _high_water() - before)


def _restart_high_water() -> int:
    """Linux lets a process forget its peak; elsewhere a peak below that of start-up is not seen."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return _high_water()
    return _high_water()


def _high_water() -> int:
    unit = 1 if sys.platform == 'darwin' else 1024
    try:
        status = Path('/proc/self/status').read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024
