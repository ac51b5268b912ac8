"""``--cfg-options`` sets what exists, suggests names for what does not, and adds keys only when asked to."""

import re

import pytest
from mmengine.config import Config

from mmplugin import cli
from mmplugin.engine.config import load_config
from mmplugin.errors import UserError


def set_options(name: str, **options) -> Config:
    return load_config(name, cfg_options=options)


@pytest.mark.parametrize(
    ('name', 'key', 'nearest'),
    [
        ('maskrcnn_v2_s2', 'train_cfg.max_epoch', 'train_cfg.max_epochs'),
        ('maskrcnn_v2_s2', 'optim_wraper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
        ('maskrcnn_v2_s2', 'lr', 'optim_wrapper.optimizer.lr'),
        ('maskrcnn_v2_s2', 'batch_size', 'train_dataloader.batch_size'),
        ('maskrcnn_v2_s2', 'model.backbone.drop_path', 'model.backbone.drop_path_rate'),
        ('maskrcnn_v2_s2', 'model.bakbone.arch', 'model.backbone'),
        ('maskrcnn_v2_s2', 'model.test_cfg.rcnn.score_threshold', 'model.test_cfg.rcnn.score_thr'),
        ('semfpn_v2_s2', 'train_cfg.max_epochs', 'train_cfg.max_iters'),
        ('semfpn_v2_s2', 'model.decode_head.num_class', 'model.decode_head.num_classes'),
        ('semfpn_v2_s2', 'param_scheduler.0.powr', 'param_scheduler.0.power'),
        ('semfpn_v2_s2', 'randomness.sed', 'randomness.seed'),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(name: str, key: str, nearest: str):
    with pytest.raises(
        UserError, match=rf'has no .*the nearest names are .*\b{re.escape(nearest)}\b.*\+{key}='
    ) as error:
        set_options(name, **{key: 1})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [
        ('maskrcnn_v2_s2', 'model.backbone.init_cfg', None),
        ('maskrcnn_v2_s2', 'model.backbone.init_cfg.checkpoint', 'a.pth'),
        ('maskrcnn_v2_s2', 'model.backbone.drop_path_rate', 0.2),
        ('maskrcnn_v2_s2', 'model.backbone.attention_bias', 'upstream'),
        ('maskrcnn_evit_m0', 'model.neck.norm_cfg.type', 'BN'),
        ('maskrcnn_v2_s2', 'model.neck.relu_before_extra_convs', True),
        ('retinanet_v2_s2', 'model.bbox_head.reg_decoded_bbox', True),  # of the parent, through **kwargs
        ('semfpn_v2_s2', 'model.decode_head.ignore_index', 0),
        ('maskrcnn_v2_s2', 'train_dataloader.drop_last', True),
        ('maskrcnn_v2_s2', 'train_dataloader.dataset.indices', 100),
        ('semfpn_v2_s2', 'train_dataloader.dataset.reduce_zero_label', False),
        ('maskrcnn_v2_s2', 'default_hooks.checkpoint.save_best', 'auto'),
        ('maskrcnn_v2_s2', 'optim_wrapper.clip_grad.max_norm', 1.0),
        ('maskrcnn_v2_s2', 'optim_wrapper.paramwise_cfg.norm_decay_mult', 0.0),
        ('maskrcnn_v2_s2', 'optim_wrapper.optimizer.betas', [0.9, 0.99]),
        ('maskrcnn_v2_s2', 'train_cfg.val_begin', 3),
        ('maskrcnn_v2_s2', 'randomness.deterministic', True),
        ('maskrcnn_v2_s2', 'custom_hooks.0.type', 'EMAHook'),
        ('maskrcnn_v2_s2', 'find_unused_parameters', True),
        ('maskrcnn_v2_s2', 'load_from', 'a.pth'),
        ('maskrcnn_v2_s2', 'experiment_name', 'one'),
    ],
)
def test_keys_of_the_config_and_arguments_of_its_classes_are_set(name: str, key: str, value):
    node = set_options(name, **{key: value})
    for part in key.split('.'):
        node = node[int(part)] if part.isdecimal() else node[part]
    assert node == value


def test_a_plus_adds_a_key():
    cfg = set_options('maskrcnn_v2_s2', **{'+my_own.number': 1, '+model.test_cfg.rcnn.score_threshold': 0.5})
    assert cfg.my_own.number == 1
    assert cfg.model.test_cfg.rcnn.score_threshold == 0.5
    assert not any(key.startswith('+') for key in cfg)


def test_parts_can_be_replaced():
    cfg = set_options('maskrcnn_v2_s2', **{'model.neck._delete_': True, 'model.neck.type': 'PAFPN'})
    assert cfg.model.neck == dict(type='PAFPN')


@pytest.mark.parametrize('command', ['train', 'test', 'check-data'])
def test_a_misspelled_option_ends_every_command_with_exit_code_2(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pth').touch()
    checkpoint = ['a.pth'] if command == 'test' else []
    assert cli.main([command, 'maskrcnn_v2_s2', *checkpoint, '--cfg-options', 'train_cfg.max_epoch=2']) == 2
    assert 'the nearest names are train_cfg.max_epochs' in capsys.readouterr().err
