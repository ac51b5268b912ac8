"""Training that can be stopped anywhere, resumed exactly, and split over processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_training import NO_FORMATTING, ROOT, last_weights, run_training, tiny_config, write

from mmplugin.engine.curves import read_scalars
from mmplugin.engine.resume import find_last_checkpoint

pytestmark = pytest.mark.usefixtures('tiny_sets')

COMMAND = f"""
import sys
{NO_FORMATTING}
from mmplugin.cli import main
sys.exit(main(sys.argv[1:]))
"""
KILL = f"""
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == int(os.environ['KILL_AT']):
            os.kill(os.getpid(), signal.SIGKILL)
{COMMAND}"""


def _run_killed(config: Path, work_dir: Path, iteration: int) -> None:
    cfg = Config.fromfile(config)
    cfg.custom_hooks.append(dict(type='KillHook'))
    killed = write(cfg, config.with_name('killed.py'))
    arguments = ['train', str(killed), '--work-dir', str(work_dir), '--no-check', '--no-report']
    environment = {**os.environ, 'KILL_AT': str(iteration), 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', KILL, *arguments], env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


@pytest.mark.parametrize(
    ('name', 'kill_at', 'workers', 'last'),
    [('retinanet_evit_m0', 3, 0, 'epoch_1'), ('semfpn_evit_m0', 4, 2, 'iter_4')],  # inside an epoch; at a checkpoint
)
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    name: str, kill_at: int, workers: int, last: str, tmp_path: Path
):
    changes = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    if name.startswith('retinanet'):
        changes |= {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2}
    config = tiny_config(name, tmp_path / 'config', **changes)
    run_training(config, tmp_path / 'whole', '--no-report')
    _run_killed(config, tmp_path / 'killed', kill_at)
    assert find_last_checkpoint(tmp_path / 'killed').stem == last
    before, whole = last_weights(tmp_path / 'killed'), last_weights(tmp_path / 'whole')
    assert any(not torch.equal(value, whole[key]) for key, value in before.items()), 'nothing left to train'
    run_training(config, tmp_path / 'killed', '--resume', '--no-report')
    assert find_last_checkpoint(tmp_path / 'killed').stem == find_last_checkpoint(tmp_path / 'whole').stem != last
    resumed = last_weights(tmp_path / 'killed')
    assert [key for key, value in whole.items() if not torch.equal(value, resumed[key])] == []


def test_a_resumed_training_uses_as_many_threads_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The last digits of sums depend on the number of threads."""
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('mmplugin.cpu_threads.busy_cores', lambda: 0)
    config = tiny_config('retinanet_evit_m0', tmp_path / 'config')
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr('mmplugin.cpu_threads.allowed_cores', lambda: 1)
        run_training(config, tmp_path, '--no-report', '--cfg-options', 'train_cfg.max_epochs=1')
        monkeypatch.setattr('mmplugin.cpu_threads.allowed_cores', lambda: 2)
        run_training(config, tmp_path, '--no-report', '--cfg-options', 'train_cfg.max_epochs=2', '--resume')
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def test_two_processes_equal_one_with_the_same_batches(tmp_path: Path):
    """Train with SGD and without what differs by design: batch statistics, class weights, dropout."""
    changes = {
        'optim_wrapper': dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        'model.backbone.norm_eval': True,
        'model.neck.norm_cfg': None,
        'model.decode_head.norm_cfg': None,
        'model.decode_head.dropout_ratio': 0.0,
        'model.decode_head.loss_decode': dict(type='CrossEntropyLoss', use_sigmoid=False, _delete_=True),
        'train_cfg.max_iters': 3,
        'train_cfg.val_interval': 3,
        'default_hooks.checkpoint.interval': 3,
    }
    config = tiny_config('semfpn_evit_m0', tmp_path / 'config', **changes)
    cfg = Config.fromfile(config)
    assert cfg.custom_hooks.pop().type == 'WarmStartHook'  # Adam amplifies rounding, which depends on threads
    write(cfg, config)
    run_training(config, tmp_path / 'one', '--no-report')
    cfg.train_dataloader.batch_size = 2
    half = write(cfg, tmp_path / 'half.py')
    port, processes = _free_port(), []
    for rank in ('0', '1'):
        environment = {**os.environ, 'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': '2', 'PYTHONPATH': str(ROOT)}
        environment |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'OMP_NUM_THREADS': '1'}
        arguments = ['train', str(half), '--work-dir', str(tmp_path / 'two'), '--no-check', '--no-report']
        command = [sys.executable, '-c', COMMAND, *arguments, '--launcher', 'pytorch', f'--local-rank={rank}']
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    assert Config.fromfile(config).model.neck.norm_cfg is None
    one, two = last_weights(tmp_path / 'one'), last_weights(tmp_path / 'two')
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f'{key}: {text}')
    (alone,), (shared,) = (read_scalars(tmp_path / folder)[1] for folder in ('one', 'two'))
    for name in ('mIoU', 'aAcc', 'mBIoU'):
        assert shared[name] == pytest.approx(alone[name], abs=0.1), name
