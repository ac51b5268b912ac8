"""``init_cfg=dict(type='Pretrained')`` loads all weights or raises an error."""

import importlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from parity import kit

from mmplugin.convert import convert, load_pretrained
from mmplugin.errors import UserError

V1, V2, EVIT = 'timm/efficientformer_l1', 'official/efficientformerv2_s0', 'official/efficientvit_m0'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Unconverted files, as published."""
    folder = tmp_path_factory.mktemp('weights')
    names = {'v1': V1, 'v2': V2, 'evit': EVIT, 'dense': 'upstream-coco/efficientformer_l1'}
    for short, name in names.items():
        torch.save({'model': kit.cheap(name)}, folder / f'{short}.pth')
    return {short: str(folder / f'{short}.pth') for short in names}


def build(arch, checkpoint=None, **arguments):
    kind = {'l': 'EfficientFormer', 's': 'EfficientFormerV2', 'm': 'EfficientViTMSRA'}[arch[0]]
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint) if checkpoint else None
    return MODELS.build(dict(type=kind, arch=arch, init_cfg=init_cfg, **arguments))


@pytest.mark.parametrize(('short', 'arch', 'name'), [('v1', 'l1', V1), ('v2', 's0', V2), ('evit', 'm0', EVIT)])
def test_a_published_file_loads_without_conversion(saved, short, arch, name):
    backbone = build(arch, saved[short])
    backbone.init_weights()
    wanted = convert(kit.cheap(name)).state_dict
    assert all(torch.equal(value, wanted[key]) for key, value in backbone.state_dict().items())


def test_the_log_has_one_line_with_all_counts(saved, caplog):
    line = load_pretrained(build('m0', out_indices=(0, 1)), saved['evit'])
    assert '\n' not in line
    for part in (
        'EfficientViTMSRA m0 from original',
        ' tensors loaded',
        '3 bias tables enlarged',
        '7 classification head',
    ):
        assert part in line
    assert '6 index tables' in line
    assert 'of stages above out_indices' in line


def test_weights_of_stages_that_do_not_exist_are_skipped(saved):
    backbone = build('s0', out_indices=(1, 2))
    load_pretrained(backbone, saved['v2'])
    assert torch.equal(backbone.stages[2].blocks[5].layer_scale_2, kit.cheap(V2)['network.4.5.layer_scale_2'].flatten())


def test_norms_of_the_feature_maps_are_reported_as_new(saved):
    backbone = build('l1', out_norm=True)
    line = load_pretrained(backbone, saved['v1'])
    assert '8 tensors new (out_norm)' in line
    assert torch.equal(backbone.out_norms['0'].weight, torch.ones(48))


def test_dense_files_require_matching_arguments(saved):
    with pytest.raises(UserError, match=r"attention_bias is 'offset'.*'upstream'.*bias_grid is 7.*out_norm is False"):
        load_pretrained(build('l1'), saved['dense'])
    backbone = build('l1', attention_bias='upstream', out_norm=True, out_indices=(2, 3))
    line = load_pretrained(backbone, saved['dense'])
    assert '4 norms of maps that are not returned' in line
    with pytest.raises(UserError, match="attention_bias is 'upstream', but the weights were trained with 'offset'"):
        load_pretrained(backbone, saved['v1'])


@pytest.mark.parametrize(
    ('arch', 'arguments', 'short', 'message'),
    [
        ('l1', {}, 'v2', r"builds EfficientFormer 'l1', but .* of EfficientFormerV2 's0'.*Set backbone="),
        ('s1', {}, 'v2', r"EfficientFormerV2 's1', but .* EfficientFormerV2 's0'"),
        ('s0', {'in_channels': 4}, 'v2', 'in_channels is 4, but the weights are for 3'),
        ('s0', {'bias_grid': 12}, 'v2', 'bias_grid is 12, but the weights have 7'),
    ],
)
def test_weights_that_do_not_fit_change_nothing(saved, arch, arguments, short, message):
    backbone = build(arch, saved[short], **arguments)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=message):
        backbone.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not backbone.is_init


def test_the_config_decides_how_tables_of_a_trained_model_are_used(tmp_path):
    """A checkpoint trained with mmplugin does not say how its tables are used, but their grid must match."""
    trained = build('s0', attention_bias='upstream', bias_grid=16)
    weights = {f'backbone.{key}': value for key, value in trained.state_dict().items()}
    torch.save({'state_dict': {**weights, 'decode_head.conv_seg.bias': torch.rand(3)}}, tmp_path / 'epoch_1.pth')
    for bias in ('upstream', 'offset'):
        load_pretrained(build('s0', attention_bias=bias, bias_grid=16), tmp_path / 'epoch_1.pth')
    with pytest.raises(UserError, match='bias_grid is 25, but the weights have 16'):
        load_pretrained(build('s0', attention_bias='upstream'), tmp_path / 'epoch_1.pth')


def test_missing_stages_are_an_error(tmp_path):
    lower = build('m0', out_indices=(0, 1))
    torch.save(lower.state_dict(), tmp_path / 'lower.pth')
    load_pretrained(build('m0', out_indices=(0,)), tmp_path / 'lower.pth')
    with pytest.raises(UserError, match=r'Missing key.*stages\.2'):
        load_pretrained(build('m0'), tmp_path / 'lower.pth')


def test_a_custom_arch_loads(tmp_path):
    arch = dict(widths=(32, 48, 64), depths=(1, 1, 1), heads=(2, 2, 2), kernels=(3, 3))
    own = MODELS.build(dict(type='EfficientViTMSRA', arch=arch))
    torch.save(own.state_dict(), tmp_path / 'own.pth')
    again = MODELS.build(dict(type='EfficientViTMSRA', arch=arch))
    load_pretrained(again, tmp_path / 'own.pth')
    assert torch.equal(again.stem[0].conv.weight, own.stem[0].conv.weight)


@pytest.mark.parametrize(
    ('library', 'name'), [('mmdet', 'detection/retinanet_evit_m0.py'), ('mmseg', 'segmentation/semfpn_evit_m0.py')]
)
def test_a_detector_and_a_segmentor_load_pretrained_weights(saved, library, name):
    pytest.importorskip(library)
    register = importlib.import_module(f'{library}.utils').register_all_modules
    config = Config.fromfile(Path(__file__).parents[2] / 'configs' / name)
    with DefaultScope.overwrite_default_scope(library):
        register(init_default_scope=False)
        models = importlib.import_module(f'{library}.registry').MODELS
        config.model.backbone.init_cfg.checkpoint = saved['evit']
        model = models.build(config.model)
        model.init_weights()
        assert torch.equal(model.backbone.stem[0].conv.weight, kit.cheap(EVIT)['patch_embed.0.c.weight'])
        config.model.backbone.init_cfg.checkpoint = saved['v2']
        with pytest.raises(UserError, match='Set backbone='):
            models.build(config.model).init_weights()
