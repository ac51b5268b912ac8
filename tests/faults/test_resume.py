"""Which checkpoint ``--resume`` takes, and training in mixed precision on a CPU."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from faults.conftest import Tiny
from tiny_training import run_training, tiny_config

from mmplugin.engine.curves import read_scalars
from mmplugin.engine.resume import find_last_checkpoint
from mmplugin.errors import UserError


def _save(tiny: Tiny, path: Path, epoch: int, saved_at: str) -> Path:
    content = tiny.content()
    content['meta'].update(epoch=epoch, iter=2 * epoch, time=saved_at)
    torch.save(content, path)
    return path


def test_the_checkpoint_that_was_saved_last_wins(tiny: Tiny, tmp_path: Path):
    """Not the one with the most iterations: it may belong to an earlier, longer training in the same folder."""
    _save(tiny, tmp_path / 'epoch_3.pth', 3, '20260101_000000')
    newest = _save(tiny, tmp_path / 'epoch_1.pth', 1, '20260102_000000')
    os.utime(newest, (1, 1))  # copies of a folder have other times
    assert find_last_checkpoint(tmp_path) == newest
    assert find_last_checkpoint(shutil.copytree(tmp_path, tmp_path / 'copy')) == tmp_path / 'copy' / 'epoch_1.pth'
    same_second = _save(tiny, tmp_path / 'epoch_2.pth', 2, '20260102_000000')
    assert find_last_checkpoint(tmp_path) == same_second


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'folder', 'other'])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_offered(damage: str, tiny: Tiny, tmp_path: Path):
    intact = _save(tiny, tmp_path / 'epoch_1.pth', 1, '20260101_000000')
    os.utime(intact, (1, 1))
    newest = tmp_path / 'epoch_2.pth'
    if damage == 'folder':
        newest.mkdir()
    elif damage == 'other':
        torch.save({'weight': torch.zeros(1)}, newest)
    else:
        newest.write_bytes(tiny.checkpoint.read_bytes()[:1000] if damage == 'truncated' else b'')
    with pytest.raises(UserError, match=rf'epoch_2\.pth .*No training was started; .*: --resume {intact}'):
        tiny.train(tmp_path, '--resume')
    tiny.train(tmp_path, '--resume', intact)
    assert tiny.runner.iter == 2
    os.utime(newest, (0, 0))  # a damaged file that is older does not matter
    assert find_last_checkpoint(tmp_path) == intact


def test_a_config_that_resumes_by_itself_takes_the_last_checkpoint(tiny: Tiny, tmp_path: Path):
    path = _save(tiny, tmp_path / 'interrupted.pth', 1, '20260101_000000')
    tiny.train(tmp_path, '--cfg-options', 'resume=True')
    assert (tiny.runner._load_from, tiny.runner.iter) == (str(path), 2)


def test_mixed_precision_on_a_cpu_computes_in_bfloat16_and_keeps_float32_weights(tiny_sets: Path, tmp_path: Path):
    # Of a map that is one pixel wide, torch 2.13 computes NaN as gradient of a strided convolution in bfloat16 on CPUs.
    arch = dict(widths=(64, 128, 192), depths=(1, 1, 1), heads=(1, 1, 1), kernels=(3,), _delete_=True)
    changes = {'train_cfg.max_epochs': 1, 'train_cfg.val_begin': 2, 'model.backbone.arch': arch}
    config = tiny_config('retinanet_evit_m0', tmp_path / 'config', (256, 192), **changes)
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        run_training(config, tmp_path / 'run', '--no-report', '--amp')
    finally:
        handle.remove()
    assert torch.bfloat16 in seen
    saved = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}
    losses = [record['loss'] for record in read_scalars(tmp_path / 'run')[0]]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
