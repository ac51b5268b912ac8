"""Numbers of threads and workers on small, shared and limited machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmplugin import cpu_threads
from mmplugin.engine import config

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ('files', 'cores'),
    [
        ({}, 8),
        ({'cpu.max': 'max 100000\n'}, 8),
        ({'cpu.max': '250000 100000\n'}, 3),
        ({'cpu.max': '10000 100000\n'}, 1),
        ({'cpu/cpu.cfs_quota_us': '200000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 2),
        ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 8),
    ],
)
def test_the_limit_of_a_container_counts(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_threads, '_affinity', lambda: set(range(8)))
    (tmp_path / 'cpu').mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_threads.allowed_cores(tmp_path) == cores


def test_busy_cores_are_those_that_are_not_idle(tmp_path, monkeypatch):
    stat = tmp_path / 'stat'
    stat.write_text('cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 10 0 0 100 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 1\n')
    later = 'cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 10 0 0 120 10 0 0 0 0 0\ncpu1 15 10 5 0 0 0 0 0 9 0\nintr 1\n'
    monkeypatch.setattr(cpu_threads, '_affinity', lambda: {0, 1})
    monkeypatch.setattr(cpu_threads.time, 'sleep', lambda seconds: stat.write_text(later))
    assert cpu_threads.busy_cores(stat=stat) == 1


def test_a_machine_without_proc_counts_as_idle(tmp_path):
    assert cpu_threads.busy_cores(seconds=0, stat=tmp_path / 'missing') == 0


@pytest.mark.parametrize('gpu', [False, True])
@pytest.mark.parametrize('cores', [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize('elsewhere', [0, 1, 100])
def test_threads_and_workers_fit_the_cores(gpu, cores, elsewhere, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    monkeypatch.setattr(cpu_threads, 'allowed_cores', lambda: cores)
    monkeypatch.setattr(cpu_threads, 'busy_cores', lambda: elsewhere)
    workers, chosen = cpu_threads.fitting_workers(4, gpu, cores), []
    cpu_threads.limit_threads(workers, chosen.append)
    assert workers >= 0
    assert chosen[0] >= 1
    assert chosen[0] + workers <= cores


def test_the_number_of_threads_that_the_user_set_stays(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    assert cpu_threads.limit_threads(0, set_num_threads=pytest.fail) == 0


@pytest.mark.parametrize('own', [{}, {'OMP_WAIT_POLICY': 'active'}, {'GOMP_SPINCOUNT': '7'}, {'KMP_BLOCKTIME': '9'}])
def test_commands_set_a_short_spin_before_torch_starts_unless_the_user_chose(own, tmp_path):
    code = (
        'import os, sys; sys.argv = ["/usr/bin/mmplugin"]; changed = {}\n'
        'class Watch:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "torch": changed.update(os.environ)\n'
        'sys.meta_path.insert(0, Watch())\n'
        'import mmplugin; print({k: v for k, v in changed.items() if k.startswith(("OMP_", "GOMP_", "KMP_"))})'
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(('OMP_', 'GOMP_', 'KMP_'))}
    env = {**inherited, **own, 'PYTHONPATH': str(ROOT)}
    run = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == str(own or cpu_threads.SPIN), run.stderr


def test_a_config_of_mmplugin_takes_the_workers_that_fit_and_other_configs_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(config, 'allowed_cores', lambda: 2)
    assert config.load_config('retinanet_v2_s0').train_dataloader.num_workers == 0
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = '{ROOT}/configs/detection/retinanet_v2_s0.py'\n")
    assert config.load_config(own).train_dataloader.num_workers == 4
    asked = {'train_dataloader.num_workers': 3}
    assert config.load_config('retinanet_v2_s0', cfg_options=asked).train_dataloader.num_workers == 3
