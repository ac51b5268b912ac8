"""All configs train a step and predict; a training resumes exactly, and its average becomes a backbone."""

from pathlib import Path

import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.registry import MODELS, DefaultScope
from tiny_training import last_weights

pytest.importorskip('mmpretrain.version', reason="requires mmpretrain: pip install 'mmplugin[classification]'")

from mmplugin.backbones import FAMILIES
from mmplugin.classification import own_data
from mmplugin.classification.framework import import_mmpretrain
from mmplugin.convert import checkpoint_io, convert
from mmplugin.convert.command import main as convert_command
from mmplugin.data.synthetic import ensure_mini_objects
from mmplugin.engine import test, train
from mmplugin.engine.config import load_config
from mmplugin.engine.runner import build_model

NAMES = [f'{family}_{arch}_imagenet' for family, cls in FAMILIES.items() for arch in cls.ARCHS]
QUICK = ('v1_l1_imagenet', 'v2_s0_imagenet', 'evit_m0_imagenet')
NARROW = dict(widths=[16, 16, 24, 32], depths=[1, 1, 1, 1], attention_blocks=1, ratios=[[4], [4], [4], [4]])


@pytest.fixture(scope='module')
def objects(tmp_path_factory):
    """Make ``--mini`` use 24 images for training and 12 for validation; return their folder."""
    root = tmp_path_factory.mktemp('objects')
    drawn = ensure_mini_objects(root, 24, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_data, 'ensure_mini_objects', lambda _: drawn)
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield drawn.root


def dataset_of(cfg, split):
    """Build a data set, whatever an earlier test left as the default scope."""
    datasets = import_mmpretrain('mmpretrain.registry').DATASETS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return datasets.build(cfg[f'{split}_dataloader'].dataset)


@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_config_trains_a_step_and_predicts_drawn_images(name, objects):
    cfg = load_config(name, mini=True, data_root=objects)
    model = build_model(cfg).train()
    train_set, val_set = (dataset_of(cfg, split) for split in ('train', 'val'))
    batch = model.data_preprocessor(default_collate([train_set[i] for i in range(4)]), training=True)
    loss = model.parse_losses(model(**batch, mode='loss'))[0]
    loss.backward()
    assert torch.isfinite(loss)
    assert not [key for key, value in model.named_parameters() if value.grad is None]
    with torch.no_grad():
        found = model.eval().test_step(default_collate([val_set[0], val_set[1]]))
    assert [tuple(sample.pred_score.shape) for sample in found] == [(6,), (6,)]


def test_a_saved_mini_config_is_not_adapted_again(objects, tmp_path):
    own = {'train_cfg.max_epochs': 2, 'train_dataloader.batch_size': 8}
    first = load_config('v2_s0_imagenet', mini=True, data_root=objects, cfg_options=own)
    first.dump(tmp_path / 'saved.py')
    assert load_config(tmp_path / 'saved.py', mini=True, data_root=objects).to_dict() == first.to_dict()


def test_the_whole_recipe_augments_mixes_and_smooths(objects):
    """The pipeline of 300 epochs, without the changes of ``--mini``."""
    cfg = load_config('evit_m0_imagenet', data_root=objects, work_dir=objects)
    assert cfg.model.head.num_classes == 6
    dataset = dataset_of(cfg, 'train')
    model = build_model(cfg).train()
    batch = model.data_preprocessor(default_collate([dataset[i] for i in range(4)]), training=True)
    assert batch['inputs'].shape == (4, 3, 224, 224)
    scores = torch.stack([sample.gt_score for sample in batch['data_samples']])
    torch.testing.assert_close(scores.sum(1), torch.ones(4))
    assert torch.isfinite(model.parse_losses(model(**batch, mode='loss'))[0])


@pytest.fixture(scope='module')
def narrow_config(objects) -> Path:
    cfg = load_config('v2_s0_imagenet')
    cfg.model.backbone.arch = NARROW
    path = objects / 'narrow.py'
    cfg.dump(path)
    return path


def run(config: Path, work_dir: Path, *arguments: str) -> dict[str, torch.Tensor]:
    options = ['--mini', '--epochs', '2', '--batch', '8', '--work-dir', str(work_dir), '--no-check', *arguments]
    assert train.main([str(config), *options]) == 0
    return last_weights(work_dir)


@pytest.fixture(scope='module')
def trained(narrow_config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('trained')
    run(narrow_config, work_dir)
    return work_dir


def test_training_prints_accuracy_and_writes_a_report(trained):
    page = (trained / 'report.html').read_text()
    for text in ('top-1 accuracy %', 'top-5 accuracy %', 'Accuracy of each class', 'mistakes first', 'data:image/jpeg'):
        assert text in page


def test_a_resumed_training_ends_with_the_same_weights_and_average(narrow_config, trained, tmp_path):
    first = checkpoint_io.read(trained / 'epoch_1.pth')
    (tmp_path / 'epoch_1.pth').write_bytes((trained / 'epoch_1.pth').read_bytes())
    run(narrow_config, tmp_path, '--resume', '--no-report')
    one, other = (checkpoint_io.read(folder / 'epoch_2.pth') for folder in (trained, tmp_path))
    for part in ('state_dict', 'ema_state_dict'):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    assert not torch.equal(
        first['state_dict']['backbone.stem.0.conv.weight'], one['state_dict']['backbone.stem.0.conv.weight']
    )


def test_the_average_becomes_a_backbone_for_detectors(narrow_config, trained, objects, tmp_path):
    """``--ema`` has to find the average where mmengine puts it: in ``state_dict``, not in ``ema_state_dict``."""
    target = tmp_path / 'backbone.pth'
    assert convert_command([str(trained / 'epoch_2.pth'), str(target), '--ema']) is None
    saved = checkpoint_io.read(trained / 'epoch_2.pth')
    converted = checkpoint_io.read(target)
    config = converted['meta']['backbone']
    assert list(config['arch']['widths']) == NARROW['widths']
    backbone = MODELS.build({**config, 'init_cfg': dict(type='Pretrained', checkpoint=str(target))})
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, saved['state_dict'][f'backbone.{key}'])
    raw = saved['ema_state_dict']['module.backbone.stem.0.conv.weight']
    assert not torch.equal(raw, backbone.state_dict()['stem.0.conv.weight'])
    assert set(converted['head']) == {'norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var',
                                      'norm.num_batches_tracked', 'head.weight', 'head.bias'}  # fmt: skip
    further = build_model(load_config(narrow_config, mini=True, data_root=objects, weights=str(target)))
    further.init_weights()  # a training that continues from these weights
    assert all(torch.equal(value, converted['state_dict'][key]) for key, value in further.backbone.state_dict().items())


def test_a_named_arch_with_two_heads_converts(objects):
    cfg = load_config('v1_l1_imagenet')
    cfg.model.teacher = None
    model = build_model(cfg)
    result = convert(dict(state_dict=model.state_dict()))
    assert result.backbone == dict(type='EfficientFormer', arch='l1')
    assert {key.partition('.')[0] for key in result.head} == {'norm', 'head', 'head_dist'}
    assert not result.others


def test_the_command_test_measures_the_average(narrow_config, trained, tmp_path, capsys):
    arguments = [str(narrow_config), str(trained / 'epoch_2.pth'), '--mini', '--work-dir', str(tmp_path)]
    assert test.main(arguments) == 0
    assert 'top-1 accuracy %' in capsys.readouterr().out
    assert (tmp_path / 'confusion.png').is_file()
