"""``--epochs``, ``--size``, ``--batch`` and the others reach every place of every config that depends on them."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny_training import last_weights, tiny_config

from mmplugin.config_edits import dicts, is_segmentation
from mmplugin.engine import test, train
from mmplugin.engine.arguments import config_from
from mmplugin.engine.curves import read_scalars
from mmplugin.engine.overrides import apply_test_overrides_, apply_training_overrides_
from mmplugin.errors import UserError
from mmplugin.paths import config_names

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
NAMES = [*config_names(), 'comparison/maskrcnn_r18', 'comparison/semfpn_r18']


def load(name: str, *options: str) -> Config:
    return config_from(train.parse([name, *options]), True, apply_training_overrides_)


def load_for_test(name: str, *options: str) -> Config:
    return config_from(test.parse([name, 'epoch_1.pth', *options]), False, apply_test_overrides_)


def steps(cfg: Config, kind: str) -> Iterator[dict]:
    """Yield the transforms of one type of all pipelines."""
    for node in dicts([cfg.get(name) for name in (*LOADERS, 'tta_pipeline', 'train_pipeline', 'test_pipeline')]):
        if node.get('type') == kind:
            yield node


@pytest.mark.parametrize('mini', [False, True], ids=['recipe', 'mini'])
@pytest.mark.parametrize('name', NAMES)
def test_every_config_is_consistent(name: str, mini: bool, tiny_sets: Path):
    data = ['--mini', '--data-root', str(tiny_sets)] if mini else []
    cfg = load(name, *data, '--epochs', '8', '--size', '240x320', '--batch', '2', '--lr', '1e-3', '--workers', '1',
               '--freeze', '1', '--seed', '7')  # fmt: skip
    assert cfg.train_cfg.max_epochs == 8
    assert 'max_iters' not in cfg.train_cfg
    assert 'Epoch' in cfg.train_cfg.type
    assert 1 <= cfg.train_cfg.val_interval <= 8
    assert cfg.train_cfg.get('val_begin', 1) < 8
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.get('by_epoch', True)
    assert 1 <= checkpoint.interval <= 8
    assert cfg.log_processor.by_epoch
    assert not cfg.train_dataloader.sampler.get('endless', False)
    warm_up = [one for one in cfg.param_scheduler if one.type == 'LinearLR']
    for one in cfg.param_scheduler:
        if one in warm_up:
            assert not mini or one.end <= 0.1 * 8 * 4 + 1  # eight images, two at a time
        else:
            assert (one.begin, one.end, one.by_epoch) == (0, 8, True)
            assert one.get('T_max', 8) == 8
            assert all(0 < milestone < 8 for milestone in one.get('milestones', []))
            assert one.get('eta_min', 0.0) <= 0.005 * 1e-3 + 1e-12
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.val_dataloader.batch_size == 1
    assert {cfg[loader].num_workers for loader in LOADERS} == {1}
    assert cfg.optim_wrapper.optimizer.lr == 1e-3
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.randomness.seed == 7
    if is_segmentation(cfg):
        assert {step.crop_size for step in steps(cfg, 'RandomCrop')} == {(240, 320)}
        assert {min(step.scale) for step in steps(cfg, 'RandomResize')} == {240}
        assert {min(step.scale) for step in steps(cfg, 'Resize')} == {180, 240, 300, 360}
        assert cfg.model.data_preprocessor.size == (256, 320), 'a multiple of 32, which no crop exceeds'
    else:
        assert {step.scale for step in steps(cfg, 'Resize')} == {(320, 240)}


@pytest.mark.parametrize('name', ['maskrcnn_v2_s0', 'semfpn_evit_m0'])
@pytest.mark.parametrize('mini', [False, True], ids=['recipe', 'mini'])
def test_iterations_replace_epochs(name: str, mini: bool, tiny_sets: Path):
    data = ['--mini', '--data-root', str(tiny_sets)] if mini else []
    cfg = load(name, *data, '--iters', '60')
    assert cfg.train_cfg.max_iters == 60
    assert 'max_epochs' not in cfg.train_cfg
    assert 'Iter' in cfg.train_cfg.type
    assert cfg.train_dataloader.sampler.endless
    assert 'batch_sampler' not in cfg.train_dataloader
    assert 1 <= cfg.train_cfg.val_interval <= 60
    assert not cfg.default_hooks.checkpoint.by_epoch
    for one in cfg.param_scheduler:
        assert not one.by_epoch
        assert one.end == (6 if one.type == 'LinearLR' else 60)
        assert 'convert_to_iter_based' not in one


def test_milestones_keep_their_place_in_the_schedule():
    assert load('retinanet_v2_s0', '--epochs', '36').param_scheduler[1].milestones == [24, 33]
    assert load('retinanet_v2_s0', '--epochs', '8').param_scheduler[1].milestones == [5, 7]
    assert load('retinanet_v2_s0', '--epochs', '1').param_scheduler[1].milestones == []
    assert load('retinanet_v2_s0', '--iters', '1200').param_scheduler[1].milestones == [800, 1100]


def test_a_longer_training_is_evaluated_as_often_as_before():
    assert load('retinanet_v2_s0', '--epochs', '36').train_cfg.val_interval == 1
    assert load('semfpn_v2_s0', '--iters', '80000').train_cfg.val_interval == 4000
    assert load('semfpn_v2_s0', '--iters', '1000').train_cfg.val_interval == 100


@pytest.mark.parametrize(('name', 'key', 'expected'), [
    ('retinanet_v2_s0', 'octave_base_scale', {'800x1333': 4, '640x1066': 3.2, '240x320': 2, '1200x2000': 4}),
    ('maskrcnn_v2_s0', 'scales', {'800x1333': [8], '480x640': [4.8], '240x320': [4], '1333x800': [8]}),
])  # fmt: skip
def test_anchors_shrink_with_the_image_but_not_below_what_strides_resolve(name: str, key: str, expected: dict):
    for size, scales in expected.items():
        (found,) = [node[key] for node in dicts(load(name, '--size', size).model) if key in node]
        assert found == scales, size
        (found,) = [node[key] for node in dicts(load_for_test(name, '--size', size).model) if key in node]
        assert found == scales, f'{size}: testing with the size of the training builds the same model'


@pytest.mark.parametrize('scale', [2.0, 4.0])
def test_the_least_anchor_scale_is_what_boxes_at_the_mean_offset_need(scale: float):
    """Shift a box of the anchor's size by a quarter of the stride in each direction, and by half as much scale."""
    threshold = {2.0: 0.5, 4.0: 0.7}[scale]

    def iou(side: float) -> float:
        overlap = (side - 0.25) ** 2
        return overlap / (2 * side**2 - overlap)

    assert iou(scale / 2) < threshold <= iou(scale)


def test_the_same_size_twice_changes_nothing(tmp_path: Path):
    once = load('retinanet_v2_s0', '--size', '480x640')
    once.dump(tmp_path / 'once.py')
    assert load(str(tmp_path / 'once.py'), '--size', '480x640').model == once.model


def test_a_config_without_a_training_or_without_frozen_stages_is_refused(tmp_path: Path):
    cfg = load('retinanet_v2_s0')
    cfg.model.backbone = dict(type='PyramidVisionTransformer')
    cfg.pop('train_cfg')
    cfg.dump(tmp_path / 'other.py')
    for option, message in (
        ('--epochs', 'has no train_cfg with max_epochs or max_iters'),
        ('--freeze', 'PyramidVision'),
    ):
        with pytest.raises(UserError, match=f'{option}.*{message}'):
            load(str(tmp_path / 'other.py'), option, '1')


def test_testing_takes_size_batch_and_workers():
    cfg = load_for_test('retinanet_v2_s0', '--size', '240x320', '--batch', '3', '--workers', '0')
    assert (cfg.test_dataloader.batch_size, cfg.test_dataloader.num_workers) == (3, 0)
    assert {step.scale for step in steps(cfg, 'Resize')} == {(320, 240)}
    with pytest.raises(UserError, match='--batch: mmseg tests images one by one'):
        load_for_test('semfpn_v2_s0', '--batch', '3')
    cfg = load_for_test('semfpn_v2_s0', '--size', '256')
    assert {min(step.scale) for step in steps(cfg, 'Resize')} == {192, 256, 320, 384}


def test_other_pipelines_keep_their_ratios_to_the_size(tmp_path: Path):
    cfg = load('maskrcnn_v2_s0')
    crop = dict(type='RandomCrop', crop_type='absolute', crop_size=(1333, 800))
    several = dict(type='RandomChoiceResize', scales=[(1333, 640), (1333, 800)], keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline[3:4] = [several, crop, dict(type='Pad', size=(1333, 800))]
    cfg.dump(tmp_path / 'several.py')
    pipeline = load(str(tmp_path / 'several.py'), '--size', '400x667').train_dataloader.dataset.pipeline
    assert [tuple(scale) for scale in pipeline[3].scales] == [(667, 320), (667, 400)]
    assert pipeline[4].crop_size == pipeline[5].size == (667, 400)


def test_cfg_options_win_over_the_other_options():
    cfg = load('maskrcnn_v2_s0', '--epochs', '8', '--lr', '1e-3', '--cfg-options', 'optim_wrapper.optimizer.lr=0.5')
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr) == (8, 0.5)


def test_what_changes_and_follows_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr('mmplugin.engine.arguments.print_log', lambda text, logger: said.append(text))
    load('retinanet_v2_s0', '--iters', '1200', '--size', '240x320', '--batch', '4')
    assert said == [
        'Settings: 1200 iterations, images not grouped by aspect ratio, learning rate drops after 800 and 1100, '
        'evaluation after every 100 iterations; 4 images per iteration at the same learning rate; '
        'warm-up of 120 iterations; images of 240x320, anchors of 2 strides instead of 4.'
    ]
    monkeypatch.setenv('RANK', '1')
    load('retinanet_v2_s0', '--batch', '4')
    load('retinanet_v2_s0')
    assert len(said) == 1


@pytest.mark.parametrize('arguments', [
    ['--epochs', '0'], ['--epochs', '1', '--iters', '1'], ['--size', '640,480'], ['--size', '16x640'], ['--lr', 'nan'],
    ['--lr', '-1'], ['--batch', '0'], ['--workers', '-1'], ['--seed', 'x'], ['--freeze', '1.5'],
])  # fmt: skip
def test_values_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match='2'):
        train.parse(['retinanet_v2_s0', *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_processes_of_a_distributed_training_share_an_epoch(tiny_sets: Path, monkeypatch: pytest.MonkeyPatch):
    options = ['--mini', '--data-root', str(tiny_sets), '--epochs', '20', '--batch', '1']
    assert load('semfpn_v2_s0', *options).param_scheduler[0].end == 16  # a tenth of 20 * 8 iterations
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert load('semfpn_v2_s0', *options).param_scheduler[0].end == 8


@pytest.mark.parametrize(
    ('name', 'length', 'checkpoint', 'count'),
    [('retinanet_evit_m0', ['--iters', '3'], 'iter_3.pth', 3), ('semfpn_evit_m0', ['--epochs', '2'], 'epoch_2.pth', 4)],
)
def test_a_training_counts_in_the_other_unit(name, length, checkpoint, count, tiny_sets: Path, tmp_path: Path):
    config = str(tiny_config(name, tiny_sets))
    arguments = [*length, '--size', '64x96', '--batch', '4', '--lr', '2e-3', '--freeze', '0', '--workers', '0']
    assert train.main([config, '--work-dir', str(tmp_path), '--no-check', '--no-report', *arguments]) == 0
    assert (tmp_path / checkpoint).is_file()
    training, validation = read_scalars(tmp_path)
    assert len(training) == count
    assert len(validation) >= 1
    assert last_weights(tmp_path)


def test_options_are_the_same_for_every_training_command():
    names = {'epochs', 'iters', 'size', 'batch', 'lr', 'workers', 'freeze', 'seed', 'weights'}
    assert names <= set(vars(train.parse(['retinanet_v2_s0'])))
    assert isinstance(train.parse(['retinanet_v2_s0', '--size', '64']), argparse.Namespace)
