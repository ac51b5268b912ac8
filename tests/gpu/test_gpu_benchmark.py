"""The benchmark on the device: a smoke test in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu.support import DEVICE

pytestmark = pytest.mark.gpu


def test_the_benchmark_measures_on_the_device(tmp_path):
    command = [sys.executable, '-m', 'mmplugin', 'benchmark', 'evit_m0', '--device', DEVICE.type]
    command += ['--size', '64', '--rounds', '2', '--json', str(tmp_path / 'numbers.json')]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / 'numbers.json').read_text())
    assert numbers['meta']['device'] == DEVICE.type
    assert {record['metric'] for record in numbers['measurements']} == {'infer', 'train', 'saved', 'peak'}
    assert all(record['value'] > 0 for record in numbers['measurements'])
