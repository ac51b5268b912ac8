"""Training that can be stopped anywhere, resumed exactly, and split over processes."""

import signal
import socket
from pathlib import Path

import pytest
import torch
from faults.processes import Command
from mmengine.config import Config
from tiny_training import last_weights, run_training, tiny_config, write

from mmplugin.engine.curves import read_scalars
from mmplugin.engine.resume import find_last_checkpoint

pytestmark = pytest.mark.usefixtures('tiny_sets')


def _run_killed(config: Path, work_dir: Path) -> None:
    """Run a training that kills itself after three iterations."""
    cfg = Config.fromfile(config)
    cfg.custom_hooks.append(dict(type='PauseHook'))
    cfg.custom_imports.imports.append('faults.pause_hook')
    killed = write(cfg, config.with_name('killed.py'))
    arguments = ['train', killed, '--work-dir', work_dir, '--no-check', '--no-report']
    kill_once = config.with_name('was_killed')
    command = Command(arguments, config.with_name('log.txt'), KILL_RANK='0', KILL_FILE=str(kill_once))
    assert command.wait() == -signal.SIGKILL, command.printed()


@pytest.mark.parametrize(
    ('name', 'workers', 'last'),
    [
        ('semfpn_evit_m0', 0, 'iter_2'),
        pytest.param('semfpn_evit_m0', 2, 'iter_2', marks=pytest.mark.faults),
        pytest.param('retinanet_evit_m0', 0, 'epoch_1', marks=pytest.mark.faults),  # killed inside an epoch
    ],
)
def test_a_killed_and_resumed_run_ends_with_the_same_weights(name: str, workers: int, last: str, tmp_path: Path):
    changes = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    if name.startswith('retinanet'):
        changes |= {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2}
    config = tiny_config(name, tmp_path / 'config', **changes)
    run_training(config, tmp_path / 'whole', '--no-report')
    _run_killed(config, tmp_path / 'killed')
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
    group = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=_free_port())
    arguments = ['train', half, '--work-dir', tmp_path / 'two', '--no-check', '--no-report', '--launcher', 'pytorch']
    commands = [
        Command([*arguments, f'--local-rank={rank}'], tmp_path / f'log{rank}.txt', RANK=rank, LOCAL_RANK=rank, **group)
        for rank in ('0', '1')
    ]
    for command in commands:
        assert command.wait() == 0, command.printed()
    assert Config.fromfile(config).model.neck.norm_cfg is None
    one, two = last_weights(tmp_path / 'one'), last_weights(tmp_path / 'two')
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f'{key}: {text}')
    (alone,), (shared,) = (read_scalars(tmp_path / folder)[1] for folder in ('one', 'two'))
    for name in ('mIoU', 'aAcc', 'mBIoU'):
        assert shared[name] == pytest.approx(alone[name], abs=0.1), name
