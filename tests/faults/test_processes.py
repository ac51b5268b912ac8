"""Signals, kills, full disks and lost processes: one message, the right exit code, and an exact ``--resume``."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from faults import kill
from faults.processes import ROOT, Command
from mmengine.config import Config
from tiny_training import tiny_config, write

from mmplugin.convert import checkpoint_io
from mmplugin.engine.runner import build_model

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures('tiny_sets')]

CONFIGS = kill.CONFIGS


def _training(config: Path, work_dir: Path, *arguments: str, **environment: str) -> Command:
    log = work_dir.with_name(f'{work_dir.name}{time.monotonic_ns()}.log')
    fixed = ['train', config, '--work-dir', work_dir, '--no-check', '--no-report']
    return Command([*fixed, *arguments], log, **environment)


def _finish(config: Path, work_dir: Path, *arguments: str) -> dict[str, torch.Tensor]:
    command = _training(config, work_dir, *arguments)
    assert command.wait() == 0, command.printed()
    return kill.all_tensors(work_dir)


def _is_exact(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.fixture(scope='module', params=[(kind, workers) for kind in CONFIGS for workers in (0, 2)], ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_sets: Path):
    """A config, and the tensors at the end of its uninterrupted training."""
    kind, workers = request.param
    folder = tmp_path_factory.mktemp(f'{kind}{workers}')
    changes = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    changes |= {'val_dataloader.num_workers': workers, 'val_dataloader.persistent_workers': workers > 0}
    config = tiny_config(CONFIGS[kind], folder / 'config', **changes)
    cfg = Config.fromfile(config)
    cfg.custom_hooks.append(dict(type='PauseHook'))
    cfg.custom_imports = dict(imports=['mmplugin', 'faults.pause_hook'], allow_failed_imports=False)
    write(cfg, config)
    return config, _finish(config, folder / 'whole')


# Where the training waits for the signal: the middle of an epoch, a checkpoint, a validation; and the iteration after
# which it stops.
PAUSES = {'train 3': 3, 'save 2': 3, 'val 6': 6}


@pytest.mark.parametrize('pause', PAUSES)
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_that_continues_exactly(run, pause: str, number, code: int, tmp_path: Path):
    """The signal goes to the whole group, workers included, as terminals and schedulers send it."""
    config, expected = run
    marker = tmp_path / 'paused'
    command = _training(config, tmp_path / 'run', PAUSE_AT=pause, PAUSE_FILE=str(marker))
    assert command.wait_until(marker.exists), command.printed()
    command.send(number, group=True)
    marker.unlink()
    assert command.wait() == code, command.printed()
    said = command.printed()
    assert 'Traceback' not in said
    assert 'Error' not in said.replace('ERROR', '')
    in_loop = 'segmentation' in str(config) and pause == 'save 2'  # saved within iteration 2, not after it
    after = 2 if in_loop else PAUSES[pause]
    assert f'{number.name}: stopped after iteration {after} of 6, saved {tmp_path / "run" / "interrupted.pth"}' in said
    assert command.living_processes() == []
    assert _is_exact(_finish(config, tmp_path / 'run', '--resume'), expected)
    assert not (tmp_path / 'run' / 'interrupted.pth').exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_acts_at_once(run, number: signal.Signals, tmp_path: Path):
    config, _ = run
    marker = tmp_path / 'paused'
    command = _training(config, tmp_path / 'run', PAUSE_AT='train 3', PAUSE_FILE=str(marker))
    assert command.wait_until(marker.exists)
    command.send(number, group=True)
    time.sleep(0.2)
    command.send(number, group=True)
    assert command.wait(30) == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert not (tmp_path / 'run' / 'interrupted.pth').exists()
    assert 'Traceback' not in command.printed()
    until = time.monotonic() + 15  # workers of a process that was ended notice it within seconds
    while command.living_processes():
        assert time.monotonic() < until, 'workers stay alive'
        time.sleep(0.1)


def test_a_killed_worker_of_the_data_loader_is_one_message(run, tmp_path: Path):
    config, expected = run
    if '2' not in config.parent.parent.name:
        pytest.skip('no workers')
    marker = tmp_path / 'paused'
    command = _training(config, tmp_path / 'run', PAUSE_AT='train 3', PAUSE_FILE=str(marker))
    assert command.wait_until(marker.exists)
    for worker in command.living_processes():
        if worker != command.process.pid:
            os.kill(worker, signal.SIGKILL)
    marker.unlink()
    assert command.wait() == 2, command.printed()
    assert 'a worker process of the data loader ended unexpectedly' in command.printed()
    assert 'Traceback' not in command.printed()
    assert _is_exact(_finish(config, tmp_path / 'run', '--resume'), expected)


def test_fifty_kills_change_no_weight(tmp_path: Path):
    stories = kill.run(50, seed=0, folder=tmp_path, say=lambda text: None)
    assert sum(len(story.moments) for story in stories) == 50
    assert sum(story.moments.count('writing') for story in stories) >= 10
    assert {(story.config, story.workers) for story in stories} == {(kind, n) for kind in CONFIGS for n in (0, 2)}
    assert [story.different for story in stories] == [0] * len(stories)


@pytest.fixture
def detection(tiny_sets: Path, tmp_path: Path) -> Path:
    """A config of a detector, with a hook that can pause it."""
    config = tiny_config(CONFIGS['detection'], tmp_path / 'config')
    cfg = Config.fromfile(config)
    cfg.custom_hooks.append(dict(type='PauseHook'))
    cfg.custom_imports = dict(imports=['mmplugin', 'faults.pause_hook'], allow_failed_imports=False)
    return write(cfg, config)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the first checkpoint, not for the second."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=48m', 'tmpfs', folder], capture_output=True)
    if mounted.returncode:
        pytest.skip('mounting a small file system needs root')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


def test_a_full_disk_is_one_message_and_the_checkpoint_before_is_intact(detection: Path, small_disk: Path):
    work_dir = small_disk / 'run'
    log = small_disk.with_suffix('.log')
    command = Command(['train', detection, '--work-dir', work_dir, '--no-check', '--no-report'], log)
    assert command.wait() == 2, command.printed()
    said = command.printed()
    assert f'{work_dir / "epoch_2.pth"}: the disk is full. Training stopped; checkpoints' in said
    assert 'Traceback' not in said
    assert sorted(path.name for path in work_dir.iterdir() if path.suffix in ('.pth', '.part')) == ['epoch_1.pth']
    torch.load(work_dir / 'epoch_1.pth', weights_only=False)


def test_too_little_space_is_noticed_before_the_first_iteration(detection: Path, small_disk: Path):
    (small_disk / 'filler').write_bytes(bytes(40 << 20))
    command = Command(
        ['train', detection, '--work-dir', small_disk / 'run', '--no-check'], small_disk.with_suffix('.log')
    )
    assert command.wait() == 2
    assert re.search(r'--work-dir .*run: \d+ MB are free, but one checkpoint takes about \d+ MB', command.printed())
    assert 'train 1/' not in command.printed()


def test_a_folder_that_vanishes_is_one_message(detection: Path, tmp_path: Path):
    marker, work_dir = tmp_path / 'paused', tmp_path / 'run'
    command = _training(detection, work_dir, PAUSE_AT='train 1', PAUSE_FILE=str(marker))
    assert command.wait_until(marker.exists)
    shutil.rmtree(work_dir)
    work_dir.write_text('in its place')
    marker.unlink()
    assert command.wait() == 2, command.printed()
    assert f'{work_dir}' in command.printed()
    assert 'there is a file in place of a folder. Training stopped' in command.printed()
    assert 'Traceback' not in command.printed()


def test_two_trainings_cannot_share_a_folder(detection: Path, tmp_path: Path):
    marker, work_dir = tmp_path / 'paused', tmp_path / 'run'
    expected = _finish(detection, tmp_path / 'whole')
    first = _training(detection, work_dir, PAUSE_AT='train 3', PAUSE_FILE=str(marker))
    assert first.wait_until(marker.exists)
    second = _training(detection, work_dir)
    assert second.wait() == 2
    assert f'run is in use by another training (process {first.process.pid} on ' in second.printed()
    marker.unlink()
    assert first.wait() == 0
    assert _is_exact(kill.all_tensors(work_dir), expected)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_killed_training_holds_no_lock(detection: Path, workers: int, tmp_path: Path):
    marker, work_dir = tmp_path / 'paused', tmp_path / 'run'
    options = ['--cfg-options', f'train_dataloader.num_workers={workers}']
    first = _training(detection, work_dir, *options, PAUSE_AT='train 3', PAUSE_FILE=str(marker))
    assert first.wait_until(marker.exists)
    (work_dir / f'.epoch_2.pth.{first.process.pid}.part').write_bytes(bytes(1000))
    (work_dir / f'.epoch_2.pth.{os.getpid()}.part').write_bytes(bytes(1000))
    first.kill()
    second = _training(detection, work_dir, *options)  # at once: workers of the first one may still run
    assert second.wait() == 0, second.printed()
    drafts = [path.name for path in work_dir.glob('.*.part')]
    assert drafts == [f'.epoch_2.pth.{os.getpid()}.part'], 'only drafts of processes that run stay'


TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']


@pytest.fixture
def torchrun(detection: Path, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start a training in two processes."""
    cfg = Config.fromfile(detection)
    cfg.train_dataloader.batch_size = 2
    cfg.custom_hooks.append(dict(type='StopSignalHook', interval=1))
    write(cfg, detection)
    script = tmp_path / 'command.py'
    script.write_text('import sys; from faults import warm_imports; from mmplugin.cli import main; sys.exit(main())')
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}', 'OMP_NUM_THREADS': '1'}

    def start(work_dir: Path, *options: str, resume: bool = False, **variables: str) -> subprocess.Popen:
        arguments = ['train', detection, '--work-dir', work_dir, '--no-check', '--no-report', '--launcher', 'pytorch']
        command = [sys.executable, *TORCHRUN, *options, script, *arguments, *(['--resume'] if resume else [])]
        return subprocess.Popen(
            list(map(str, command)), env={**environment, **variables}, stderr=subprocess.PIPE, text=True
        )

    return start


def _said(process: subprocess.Popen) -> str:
    """Wait for the end of a process that must not fail, and return what it printed."""
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said[-3000:]
    return said


def test_torchrun_restarts_a_killed_worker_which_continues_by_itself(detection: Path, torchrun, tmp_path: Path):
    # An earlier, finished training in the same folder must not be continued.
    _finish(detection, tmp_path / 'killed')
    _said(torchrun(tmp_path / 'whole'))
    variables = {'KILL_RANK': '1', 'KILL_FILE': str(tmp_path / 'killed_once')}
    said = _said(torchrun(tmp_path / 'killed', '--max-restarts=1', **variables))
    assert (tmp_path / 'killed_once').exists()
    assert 'train 1/' in said
    assert _is_exact(kill.all_tensors(tmp_path / 'killed'), kill.all_tensors(tmp_path / 'whole'))


def test_a_signal_to_torchrun_saves_a_checkpoint_that_continues_exactly(torchrun, tmp_path: Path):
    marker = tmp_path / 'paused'
    _said(torchrun(tmp_path / 'whole'))
    process = torchrun(tmp_path / 'run', PAUSE_AT='train 3', PAUSE_FILE=str(marker))
    while not marker.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    marker.unlink()
    _, said = process.communicate(timeout=100)
    assert f'SIGTERM: stopped after iteration 3 of 6, saved {tmp_path / "run" / "interrupted.pth"}' in said
    _said(torchrun(tmp_path / 'run', resume=True))
    assert _is_exact(kill.all_tensors(tmp_path / 'run'), kill.all_tensors(tmp_path / 'whole'))


# Commands that train nothing, and what they print before the work that a signal interrupts.
OTHERS = {
    'export': (['CONFIG', 'CHECKPOINT', '--size', '64x96', '--out', 'OUT/file.onnx'], 'Exporting'),
    'benchmark': (['v2_s0', '--size', '224', '--json', 'OUT/times.json'], ''),
    'search': (['CONFIG', '--rank-only', '--target-latency', '50%', '--size', '64', '--work-dir', 'OUT'], ''),
}


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
@pytest.mark.parametrize('name', OTHERS)
def test_a_signal_to_another_command_leaves_nothing_behind(
    name: str, number, code: int, detection: Path, tmp_path: Path
):
    arguments, printed = OTHERS[name]
    out = tmp_path / 'out'
    out.mkdir()
    places = {'CONFIG': detection, 'CHECKPOINT': tmp_path / 'a.pth', 'OUT': out}
    if 'CHECKPOINT' in arguments:
        model = build_model(Config.fromfile(detection))
        checkpoint_io.write(places['CHECKPOINT'], dict(state_dict=model.state_dict()))
    for place, path in places.items():
        arguments = [argument.replace(place, str(path)) for argument in arguments]
    command = Command([name, *arguments], tmp_path / 'log.txt')
    assert command.wait_until(lambda: printed in command.printed()), command.printed()
    time.sleep(2)
    command.send(number, group=True)
    assert command.wait(60) == code, command.printed()
    assert 'Traceback' not in command.printed()
    assert [path.name for path in out.rglob('*') if path.is_file() and path.name != '.lock'] == []
    assert command.living_processes() == []


def test_the_kill_script_writes_its_result(tmp_path: Path):
    command = [sys.executable, ROOT / 'tests/faults/kill.py', '--kills', '1', '--out', tmp_path / 'kills.json']
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=400)
    result = json.loads((tmp_path / 'kills.json').read_text())
    assert result['kills'] == 1
    assert result['different tensors'] == 0
    assert result['trainings'] == len(result['stories']) >= 1  # a run that ends before its kill is one more
