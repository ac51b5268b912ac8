"""Measure a training step beside other processes, for several settings of OpenMP's waiting threads.

    python docs/scripts/busy_machine.py [--rounds 15] [--intel LIBIOMP5] [--write]

One process per setting trains EfficientFormerV2-S0 (batch 4, 192x224, trainable norms). The settings take turns, first
alone, then with one busy process on the machine, then with a niced one. ``--write`` updates docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from markers import ROOT, replace_between
from rich.console import Console

from mmplugin.cpu_threads import SPIN, allowed_cores
from mmplugin.tables import Table, show

CHILD = """
import json, os, sys, time
import torch
from mmplugin.cpu_threads import limit_threads
from mmplugin.backbones import EfficientFormerV2
if 'CHOOSE_THREADS' in os.environ:
    limit_threads(workers=0, set_num_threads=torch.set_num_threads)
model = EfficientFormerV2('s0').train()
images = torch.randn(4, 3, 192, 224)
for line in sys.stdin:
    started = time.perf_counter()
    sum(level.square().mean() for level in model(images)).backward()
    print(json.dumps(time.perf_counter() - started), flush=True)
"""
BUSY = [sys.executable, '-c', 'while True: pass']
LOADS = {'alone': None, 'with a busy process': BUSY, 'with a niced process': ['nice', '-n', '19', *BUSY]}
WARM_UP = 3


def settings(intel: Path | None) -> dict[str, dict[str, str]]:
    """Return the environment variables of each row."""
    rows = {
        "torch's default": {},
        'OMP_WAIT_POLICY=passive': {'OMP_WAIT_POLICY': 'passive'},
        **{f'GOMP_SPINCOUNT={count}': {'GOMP_SPINCOUNT': str(count)} for count in (1000, 2000, 3000, 5000)},
    }
    rows['`mmplugin train`'] = {**SPIN, 'CHOOSE_THREADS': '1'}
    if intel:
        preload = {'LD_PRELOAD': str(intel)}
        rows["Intel's default"] = preload
        rows['Intel, KMP_BLOCKTIME=1'] = {**preload, 'KMP_BLOCKTIME': '1'}
    return rows


@contextmanager
def running(command: list[str] | None) -> Iterator[None]:
    """Run a command in the background."""
    process = subprocess.Popen(command) if command else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


class Trainer:
    """A process that trains one step when it is told to."""

    def __init__(self, environment: dict[str, str]) -> None:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(('OMP_', 'GOMP_', 'KMP_'))}
        ours |= {'PYTHONPATH': str(ROOT), **environment}
        self.process = subprocess.Popen(
            [sys.executable, '-c', CHILD], env=ours, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> float:
        """Return the seconds of one step."""
        self.process.stdin.write('step\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def measure(chosen: dict[str, dict[str, str]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of all steps. The processes start one after the other, and then take turns."""
    trainers = {}
    for name, environment in chosen.items():
        trainers[name] = Trainer(environment)
        for _ in range(WARM_UP):
            trainers[name].step()
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            seconds[name].append(trainer.step())
    for trainer in trainers.values():
        trainer.process.kill()
        trainer.process.wait()
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--intel', type=Path, help="path of Intel's libiomp5.so, as the package intel-openmp has it")
    parser.add_argument('--write', action='store_true', help='write the table into docs/performance.md')
    options = parser.parse_args()
    chosen = settings(options.intel)
    cells: dict[str, list[str]] = {name: [] for name in chosen}
    default_alone = None
    for load, command in LOADS.items():
        with running(command):
            seconds = measure(chosen, options.rounds)
        default_alone = default_alone or statistics.median(next(iter(seconds.values())))
        for name, values in seconds.items():
            low, median, high = statistics.quantiles(values, n=4)
            cells[name].append(f'{median:.2f} ({low:.2f} to {high:.2f}), {median / default_alone:.2f}x')
        Console(stderr=True).print(f'measured {load}')
    table = Table('Seconds for one training step', ['setting', *LOADS], [[name, *row] for name, row in cells.items()])
    show([table])
    if options.write:
        intel = ' --intel LIBIOMP5' if options.intel else ''
        how = (
            f'Median and quartiles of {options.rounds} steps in seconds, {allowed_cores()} shared CPU cores, '
            f'{date.today()}: `python docs/scripts/busy_machine.py --rounds {options.rounds}{intel} --write`. '
            f'mmplugin sets {" and ".join(f"`{name}={value}`" for name, value in SPIN.items())}.'
        )
        replace_between(ROOT / 'docs/performance.md', 'busy', f'{table.markdown()}\n\n{how}')


if __name__ == '__main__':
    main()
