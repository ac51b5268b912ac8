"""Workers of a data loader outlive signals that are not from their parent. tests/faults stops whole trainings."""

import os
import subprocess
import sys

import pytest

# After an operation of two threads, torch starts a thread in each worker before the worker is initialized.
SCRIPT = """
import multiprocessing, subprocess, sys
import torch
from torch.utils.data import DataLoader
from mmplugin.hooks.stop_signal import leave_signals_to_parent_

if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[1])
    torch.rand(600, 600) @ torch.rand(600, 600)
    loader = DataLoader(range(8), num_workers=1, persistent_workers=True)
    leave_signals_to_parent_(loader)
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    for _ in range(5):
        subprocess.run(['kill', '-TERM', str(worker.pid)], check=True)
    assert [int(batch) for batch in batches] == list(range(1, 8))
    worker.terminate()
    worker.join(10)
    print('exit code', worker.exitcode)
"""


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_only_the_parent_ends_a_worker(method: str, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    environment = {**os.environ, 'OMP_NUM_THREADS': '2', 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-W', 'ignore', tmp_path / 'script.py', method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == 'exit code 0\n', done.stderr
