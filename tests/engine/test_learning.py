"""Trainings of minutes that have to reach an AP."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from mmplugin.convert import command as convert
from mmplugin.convert.classifier import Classifier
from mmplugin.convert.conversion import Result
from mmplugin.convert.export import export, wrap
from mmplugin.engine import train
from mmplugin.engine.curves import read_scalars
from mmplugin.hooks.warm_start import WarmStartHook


def _write_published(path: Path) -> None:
    """Write the weights of a short pretraining in the format of the authors' code."""
    config = dict(type='EfficientFormerV2', arch='s0')
    backbone = MODELS.build(config)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    WarmStartHook(steps=80).pretrain_(backbone, mean.view(3, 1, 1), std.view(3, 1, 1))
    head = Classifier('v2', backbone.out_channels[-1], 1000, distilled=True).state_dict()
    content, _ = export(Result(backbone.state_dict(), config, 'ours', head=head), 'original')
    torch.save(wrap(content, 'original'), path)


@pytest.mark.slow
def test_converted_weights_with_frozen_norms_reach_an_ap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _write_published(tmp_path / 'published.pth')
    convert.main(['published.pth', 'checkpoints/v2_s0.pth'])
    shorter = ['train_cfg.max_epochs=2', 'default_hooks.logger.interval=1', 'log_processor.window_size=1']
    assert train.main(['maskrcnn_v2_s0', '--mini', '--no-report', '--work-dir', 'run', '--cfg-options', *shorter]) == 0

    training, validation = read_scalars('run')
    loss = [record['loss'] for record in training]
    assert len(loss) == 280
    assert sum(loss[-20:]) / 20 < sum(loss[:5]) / 5 / 2
    assert validation[-1]['coco/bbox_mAP_50'] > 0.1
    assert validation[-1]['coco/segm_mAP_50'] > 0.05

    converted = torch.load('checkpoints/v2_s0.pth')['state_dict']
    trained = torch.load('run/epoch_2.pth', weights_only=False)['state_dict']
    for key, value in converted.items():
        same = torch.equal(trained[f'backbone.{key}'], value)
        frozen = 'running' in key or 'num_batches' in key
        assert same == frozen, f'{key}: norm statistics are frozen, everything else is trained'


@pytest.mark.slow
def test_the_first_run_of_the_readme_reaches_the_ap_that_it_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readme = (Path(__file__).parents[2] / 'README.md').read_text()
    stated = re.search(r'box AP50 (0\.\d+), mask AP50 (0\.\d+)', readme)
    assert stated, 'README.md no longer states box AP50 and mask AP50 of the first run'
    monkeypatch.chdir(tmp_path)
    assert train.main(['maskrcnn_v2_s2', '--mini', '--no-report', '--work-dir', 'run']) == 0
    last = read_scalars('run')[1][-1]
    for name, value in zip(('coco/bbox_mAP_50', 'coco/segm_mAP_50'), stated.groups(), strict=True):
        assert last[name] > float(value) - 0.06, name  # other numbers of threads round differently
