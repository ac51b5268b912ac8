"""Threads on a CPU: how many to use, and how long they spin while they wait.

OpenMP's threads spin while they wait for each other. Where another process needs a core, a spinning thread keeps the
core from the thread that it waits for, and a training step takes several times as long. docs/performance.md has the
figures of ``set_short_spin`` and ``limit_threads``.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

# Read when torch loads OpenMP: libgomp counts rounds of its loop, Intel's library milliseconds.
SPIN = {'GOMP_SPINCOUNT': '5000', 'KMP_BLOCKTIME': '1'}
CGROUP = Path('/sys/fs/cgroup')
STAT = Path('/proc/stat')
IDLE, IOWAIT, FIELDS = 3, 4, 8  # columns of /proc/stat; those after the eighth are counted twice
CORES_PER_WORKER = 4  # on a machine without a GPU, where the training itself needs the cores


def set_short_spin() -> None:
    """Let OpenMP's threads of this process and its children spin only briefly. Must run before torch is imported.

    Does nothing if the user has chosen how threads wait.
    """
    if 'OMP_WAIT_POLICY' not in os.environ and not any(name in os.environ for name in SPIN):
        os.environ.update(SPIN)


def allowed_cores(cgroup: Path = CGROUP) -> int:
    """Return the number of cores that this process may use: its affinity, and the CPU limit of its container."""
    return max(1, math.ceil(min(len(_affinity()), _cgroup_limit(cgroup))))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set(range(os.cpu_count() or 1))


def _cgroup_limit(cgroup: Path) -> float:
    """Return the CPU seconds per second that the container may use, or infinity; of cgroups version 2 or 1."""
    try:
        quota, period = (cgroup / 'cpu.max').read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / 'cpu/cpu.cfs_quota_us').read_text().strip()
            period = (cgroup / 'cpu/cpu.cfs_period_us').read_text().strip()
        except OSError:
            return math.inf
    return int(quota) / int(period) if quota.isdecimal() and int(period) else math.inf


def busy_cores(seconds: float = 0.3, stat: Path = STAT) -> float:
    """Return how many of this process's cores other processes use, measured while this process sleeps."""
    before = _core_times(stat)
    time.sleep(seconds)
    after = _core_times(stat)
    busy = 0.0
    for core in before.keys() & after.keys() & _affinity():
        spent = [late - early for early, late in zip(before[core], after[core], strict=True)]
        if total := sum(spent):
            busy += 1 - (spent[IDLE] + spent[IOWAIT]) / total
    return busy


def _core_times(stat: Path) -> dict[int, list[int]]:
    """Return the times of each core, in the units of /proc/stat. Empty where there is no such file."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.startswith('cpu') and line[3:4].isdecimal()]
    return {int(name[3:]): [int(value) for value in values[:FIELDS]] for name, *values in words}


def fitting_workers(wanted: int, gpu: bool, cores: int) -> int:
    """Return a number of data loading processes that leaves cores to the main process."""
    return min(wanted, cores - 1 if gpu else cores // CORES_PER_WORKER)


def limit_threads(workers: int, set_num_threads: Callable[[int], None]) -> int:
    """Give the main process the cores that data loading processes and other programs leave.

    The number is chosen once, because results depend on it in the last digits. ``OMP_NUM_THREADS`` wins.

    Args:
        workers: Data loading processes of this process.
        set_num_threads: ``torch.set_num_threads``.

    Returns:
        Cores that were left to other programs.
    """
    if 'OMP_NUM_THREADS' in os.environ:
        return 0
    cores, elsewhere = allowed_cores(), round(busy_cores())
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    set_num_threads(max(1, (cores - elsewhere) // processes - workers))
    return min(elsewhere, cores - 1)
