"""Training that can be stopped anywhere, resumed exactly, and split over processes."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmplugin import stack
from mmplugin.config_edits import dicts
from mmplugin.data.seeded_sampler import SeededSampler
from mmplugin.data.synthetic import ensure_mini_ade, ensure_mini_coco
from mmplugin.data.transforms import SeedSample
from mmplugin.engine import mini, test, train
from mmplugin.engine.checkpoints import find_last_checkpoint
from mmplugin.engine.config import load_config
from mmplugin.errors import UserError
from mmplugin.files import AtomicBackend

ROOT = Path(__file__).resolve().parents[2]
KILL = """
import os, signal, sys
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == int(os.environ['KILL_AT']):
            os.kill(os.getpid(), signal.SIGKILL)
from mmplugin.cli import main
sys.exit(main(sys.argv[1:]))
"""

# Stock mmdet cannot even be imported without compiled operators, unless the stand-ins are there before it.
FIRST = 'import mmplugin' if stack.current() is stack.STOCK else ''


@pytest.fixture(scope='module', autouse=True)
def tiny_sets(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp('sets')
    drawn = {'ensure_mini_coco': ensure_mini_coco(root, 8, 2), 'ensure_mini_ade': ensure_mini_ade(root, 8, 2)}
    with pytest.MonkeyPatch.context() as patch:
        for name, made in drawn.items():
            patch.setattr(mini, name, lambda _, made=made: made)
        yield


def _tiny(name: str, folder: Path, **changes) -> Path:
    """A complete config of a few short iterations, as a file."""
    cfg = load_config(name, mini=True, data_root=folder)
    for step in dicts([cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]):
        if step.get('type') in ('Resize', 'RandomResize', 'AlignResize'):
            step['scale'] = (96, 64)
        elif step.get('type') == 'RandomCrop':
            step['crop_size'] = (64, 64)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
        cfg.train_cfg.update(max_iters=6, val_interval=6)
        cfg.default_hooks.checkpoint.interval = 2
    else:
        cfg.train_cfg.update(max_epochs=3, val_interval=3)
    cfg.train_dataloader.batch_size = 4
    cfg.custom_hooks[-1].update(steps=2, batch_size=16)  # the warm start
    cfg.default_hooks.logger.interval = 1
    cfg.merge_from_dict(changes)
    folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(folder / 'tiny.py')
    return folder / 'tiny.py'


def _run(config: Path, work_dir: Path, *words: str) -> None:
    assert train.main([str(config), '--work-dir', str(work_dir), '--no-check', *words]) == 0


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(find_last_checkpoint(folder), weights_only=False)['state_dict']


def _killed(config: Path, work_dir: Path, iteration: int) -> None:
    cfg = Config.fromfile(config)
    cfg.custom_hooks.append(dict(type='KillHook'))
    mortal = config.with_name('mortal.py')
    cfg.dump(mortal)
    words = ['train', str(mortal), '--work-dir', str(work_dir), '--no-check', '--no-report']
    environment = {**os.environ, 'KILL_AT': str(iteration), 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', KILL, *words], env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


@pytest.mark.parametrize(
    ('name', 'kill_at', 'workers'),
    [('retinanet_evit_m0', 3, 0), ('semfpn_evit_m0', 4, 2)],  # in the second of three epochs; after the second of three
)
def test_a_killed_and_resumed_run_ends_with_the_same_weights(name: str, kill_at: int, workers: int, tmp_path: Path):
    changes = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
    config = _tiny(name, tmp_path / 'config', **changes)
    _run(config, tmp_path / 'whole', '--no-report')
    _killed(config, tmp_path / 'killed', kill_at)
    last = find_last_checkpoint(tmp_path / 'killed')
    assert last.stem in ('epoch_1', 'iter_4')
    _run(config, tmp_path / 'killed', '--resume', '--no-report')
    whole, resumed = _weights(tmp_path / 'whole'), _weights(tmp_path / 'killed')
    different = [key for key, value in whole.items() if not torch.equal(value, resumed[key])]
    assert not different
    start = torch.load(last, weights_only=False)['state_dict'] if last.is_file() else {}
    assert any(not torch.equal(value, whole[key]) for key, value in start.items()) or not start


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def test_two_processes_equal_one_on_the_same_batches(tmp_path: Path):
    """With SGD, and without what differs by design: batch statistics, weights by class, chance in the step."""
    changes = {
        'optim_wrapper': dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        'model.backbone.norm_eval': True,
        'model.neck.norm_cfg': None,
        'model.decode_head.norm_cfg': None,
        'model.decode_head.dropout_ratio': 0.0,
        'model.decode_head.loss_decode': dict(type='CrossEntropyLoss', use_sigmoid=False, _delete_=True),
    }
    config = _tiny('semfpn_evit_m0', tmp_path / 'config', **changes)
    cfg = Config.fromfile(config)
    cfg.custom_hooks.pop()  # the warm start: its Adam makes much of a rounding that other threads do otherwise
    cfg.dump(config)
    _run(config, tmp_path / 'one', '--no-report')
    cfg.train_dataloader.batch_size = 2
    cfg.dump(tmp_path / 'half.py')
    port, processes = _free_port(), []
    for rank in ('0', '1'):
        environment = {**os.environ, 'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': '2', 'PYTHONPATH': str(ROOT)}
        environment |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'OMP_NUM_THREADS': '1'}
        words = ['train', str(tmp_path / 'half.py'), '--work-dir', str(tmp_path / 'two'), '--no-check', '--no-report']
        command = [sys.executable, '-m', 'mmplugin.cli', *words, '--launcher', 'pytorch', f'--local-rank={rank}']
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()[-2000:]
    one, two = _weights(tmp_path / 'one'), _weights(tmp_path / 'two')
    start = load_config(config).model
    assert start.neck.norm_cfg is start.decode_head.norm_cfg is None
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=lambda said, key=key: f'{key}: {said}')


def test_report_dumped_config_and_inferencer(tmp_path: Path, capfd: pytest.CaptureFixture):
    """What a work folder holds is complete: a fresh process finds the same boxes as the test tool."""
    config = _tiny('maskrcnn_v2_s0', tmp_path / 'config', **{'model.test_cfg.rcnn.score_thr': 0.0})
    work_dir = tmp_path / 'run'
    _run(config, work_dir)
    said, log = ''.join(capfd.readouterr()), next(work_dir.glob('*/*.log')).read_text()
    for noise in ('Hooks will be executed', 'Average Recall', 'index created'):  # hundreds of lines
        assert noise in log
        assert noise not in said
    page = (work_dir / 'report.html').read_text()
    assert page.count('data:image/jpeg;base64') == 2
    assert page.count('data:image/png;base64') == 2
    assert 'http' not in re.sub(r'<pre>.*</pre>', '', page, flags=re.S)
    for word in ('box AP50', 'mask AP50', 'duplicate', 'fish', 'torch'):
        assert word in page

    checkpoint, out = find_last_checkpoint(work_dir), tmp_path / 'found.pkl'
    words = [str(work_dir / 'tiny.py'), str(checkpoint), '--work-dir', str(tmp_path / 'test')]
    assert test.main([*words, '--out', str(out), '--show-dir', str(tmp_path / 'shown')]) == 0
    assert 'per class' in capfd.readouterr().out.lower()
    assert len(list((tmp_path / 'shown').glob('*.jpg'))) == 2
    found = pickle.loads(out.read_bytes())
    code = f"""
{FIRST}
import pickle, sys
from mmdet.apis import DetInferencer
inferencer = DetInferencer(model={str(work_dir / 'tiny.py')!r}, weights={str(checkpoint)!r}, device='cpu')
out = inferencer({found[0]['img_path']!r}, return_datasamples=True, no_save_pred=True)['predictions'][0].pred_instances
pickle.dump([out.bboxes.numpy(), out.scores.numpy()], open({str(tmp_path / 'boxes.pkl')!r}, 'wb'))
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    boxes, scores = pickle.loads((tmp_path / 'boxes.pkl').read_bytes())
    order = lambda values: values.sort(descending=True).values  # noqa: E731
    torch.testing.assert_close(order(torch.from_numpy(scores)), order(found[0]['pred_instances']['scores']))
    torch.testing.assert_close(
        torch.from_numpy(boxes).sort(0).values, found[0]['pred_instances']['bboxes'].sort(0).values, atol=1e-2, rtol=0
    )


def test_segmentation_report_tta_and_inferencer(tmp_path: Path):
    config = _tiny('semfpn_evit_m0', tmp_path / 'config')
    work_dir = tmp_path / 'run'
    _run(config, work_dir)
    page = (work_dir / 'report.html').read_text()
    for word in ('mIoU', 'boundary IoU', 'Confusion', 'water'):
        assert word in page
    checkpoint = find_last_checkpoint(work_dir)
    words = [str(work_dir / 'tiny.py'), str(checkpoint), '--work-dir', str(tmp_path / 'test')]
    assert test.main([*words, '--tta', '--show-dir', str(tmp_path / 'shown')]) == 0
    assert len(list((tmp_path / 'shown').glob('*.jpg'))) == 2
    assert (tmp_path / 'test' / 'confusion.png').read_bytes().startswith(b'\x89PNG')
    code = f"""
{FIRST}
import numpy as np
from mmseg.apis import MMSegInferencer
inferencer = MMSegInferencer(model={str(work_dir / 'tiny.py')!r}, weights={str(checkpoint)!r}, device='cpu')
found = inferencer(np.zeros((70, 90, 3), dtype=np.uint8), return_datasamples=True)
assert found.pred_sem_seg.data.shape == (1, 70, 90), found
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def test_sampler_splits_and_starts_anywhere(monkeypatch: pytest.MonkeyPatch):
    data = range(10)

    def take(count: int, start: int = 0, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        sampler = SeededSampler(data, seed=3, endless=True)
        sampler.rank, sampler.world_size = rank, world
        sampler.start_at(start)
        return [(int(index), index.seed) for index, _ in zip(sampler, range(count), strict=False)]

    stream = take(40)
    assert sorted(index for index, _ in stream[:10]) == list(data) != [index for index, _ in stream[:10]]
    assert [index for index, _ in stream[:10]] != [index for index, _ in stream[10:20]]
    assert len({seed for _, seed in stream}) == 40
    assert take(15, start=25) == stream[25:]
    assert take(12, start=7, rank=1, world=2) == stream[1::2][7:19]


def test_epochs_are_shared_out_and_filled_up():
    sampler = SeededSampler(range(5), seed=0)
    sampler.set_epoch(2)
    alone = [int(index) for index in sampler]
    parts = []
    for rank in (0, 1):
        sampler.rank, sampler.world_size = rank, 2
        parts.append([int(index) for index in sampler])
    assert [len(part) for part in parts] == [len(sampler)] * 2
    assert [parts[i % 2][i // 2] for i in range(5)] == alone


def test_seed_survives_the_way_to_a_worker():
    index = next(iter(SeededSampler(range(9), seed=1)))
    copied = pickle.loads(pickle.dumps(index))
    assert (int(copied), copied.seed) == (int(index), index.seed)
    drawn = []
    for _ in range(2):
        SeedSample()({'sample_idx': copied})
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / 'epoch_1.pth'
    AtomicBackend().put(b'old', target)

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        AtomicBackend().put(b'new and broken', target)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']
    assert target.read_bytes() == b'old'


def test_messages_for_what_the_user_can_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'no_model.py').write_text('number = 1')
    (tmp_path / 'weights.pth').touch()
    for words, message in {
        ('maskrcnn_v2_s2',): 'mmplugin convert DOWNLOADED checkpoints/v2_s2.pth',
        ('no_model.py',): 'no_model.py has no model with a backbone',
        ('weights.pth',): 'weights.pth is no config that mmengine can read',
        ('maskrcnn_v2_s2', '--cfg-options', 'val_evaluator.5.metric=bbox'): '--cfg-options does not fit',
        ('maskrcnn_v2_s2', '--mini', '--resume', 'gone.pth'): '--resume alone takes the last of work_dirs/maskrcnn_v2',
        ('maskrcnn_v2_s2', '--mini', '--resume'): 'no epoch_N.pth',
        ('maskrcnn_v2_s2', '--classes', 'a,b'): '--data-root',
        ('maskrcnn_v2_s2', '--mini', '--classes', 'a'): 'brings its own classes',
        ('maskrcnn_v2_s2', '--data-root', 'nowhere'): 'is no folder',
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            train.main([*words])


@pytest.mark.parametrize(
    ('name', 'missing'),
    [
        ('retinanet_v2_s0', 'data/coco/annotations/instances_val2017.json'),
        ('semfpn_v2_s0', 'data/ade/ADEChallengeData2016/images/validation'),
    ],
)
def test_measuring_without_data_says_which(name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'epoch_1.pth').touch()
    with pytest.raises(UserError, match=f'{missing} is not there: .*--data-root FOLDER'):
        test.main([name, 'epoch_1.pth'])
