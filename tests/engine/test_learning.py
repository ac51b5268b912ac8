"""The whole way, minutes long: pretrain, save as the authors do, convert, train with frozen norms, measure."""

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


def _published(path: Path) -> None:
    """A small pretraining in a file as the authors' code writes it."""
    config = dict(type='EfficientFormerV2', arch='s0')
    backbone = MODELS.build(config)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    WarmStartHook(steps=80).pretrain_(backbone, mean.view(3, 1, 1), std.view(3, 1, 1))
    head = Classifier('v2', backbone.out_channels[-1], 1000, distilled=True).state_dict()
    content, _ = export(Result(backbone.state_dict(), config, 'ours', head=head), 'original')
    torch.save(wrap(content, 'original'), path)


@pytest.mark.slow
def test_converted_weights_with_frozen_norms_learn_to_detect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _published(tmp_path / 'published.pth')
    convert.main(['published.pth', 'checkpoints/v2_s0.pth'])
    shorter = ['train_cfg.max_epochs=2', 'default_hooks.logger.interval=1', 'log_processor.window_size=1']
    assert train.main(['maskrcnn_v2_s0', '--mini', '--no-report', '--work-dir', 'run', '--cfg-options', *shorter]) == 0

    training, measured = read_scalars('run')
    loss = [record['loss'] for record in training]
    assert len(loss) == 280
    assert sum(loss[-20:]) / 20 < sum(loss[:5]) / 5 / 2
    assert measured[-1]['coco/bbox_mAP'] > 0

    converted = torch.load('checkpoints/v2_s0.pth')['state_dict']
    trained = torch.load('run/epoch_2.pth', weights_only=False)['state_dict']
    for key, value in converted.items():
        same = torch.equal(trained[f'backbone.{key}'], value)
        frozen = 'running' in key or 'num_batches' in key
        assert same == frozen, f'{key}: norm statistics stay as loaded, everything else learns'
