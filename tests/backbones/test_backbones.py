"""One contract for all thirteen backbones."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from random_backbones import SMALLEST, build

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError

ARCHS = [(cls.__name__, arch) for cls in FAMILIES.values() for arch in cls.ARCHS]
SIZES = [(32, 32), (64, 96), (75, 101), (224, 224), (241, 350), (32, 1024)]


@pytest.fixture(scope='module', params=ARCHS, ids='-'.join)
def model(request) -> torch.nn.Module:
    """Build each backbone once for all tests that only run it."""
    return build(*request.param)


def check_maps(model: torch.nn.Module, maps: tuple, height: int, width: int) -> None:
    assert isinstance(maps, tuple)
    assert len(maps) == len(model.out_channels) == len(model.out_strides)
    for level, channels, stride in zip(maps, model.out_channels, model.out_strides, strict=True):
        assert level.shape[1:] == (channels, -(-height // stride), -(-width // stride))
        assert level.isfinite().all()


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_maps_have_the_promised_shapes_and_are_deterministic(model, height, width):
    x = torch.randn(1, 3, height, width)
    with torch.no_grad():
        first, second = model.eval()(x), model(x)
    check_maps(model, first, height, width)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_changes_little(model):
    x = torch.randn(1, 3, 32, 1024)
    with torch.no_grad():
        full = model.eval()(x)
        with torch.autocast('cpu', torch.bfloat16):
            half = model(x)
    for a, b in zip(full, half, strict=True):
        assert (a - b.float()).std() < 0.05 * a.std()


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (75, 101)])
def test_training_gives_every_parameter_a_finite_gradient(model, height, width):
    model.train().zero_grad()
    maps = model(torch.randn(2, 3, height, width))
    check_maps(model, maps, height, width)
    sum(level.square().mean() for level in maps).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(('height', 'width'), [*SIZES[2:], (800, 1333)])
def test_full_size_in_training(model, height, width):
    model.train().zero_grad()
    maps = model(torch.randn(2, 3, height, width))
    check_maps(model, maps, height, width)
    sum(level.mean() for level in maps).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_out_indices_choose_and_order_and_limit_what_is_built(name, arch):
    everything = build(name, arch).eval()
    last = len(everything.STRIDES) - 1
    x = torch.randn(1, 3, 64, 96)
    wanted, weights = everything(x), everything.state_dict()
    for indices in [(0,), (1,), (-1,), (0, 2), (last, 0), (-2, -1)]:
        model = build(name, arch, out_indices=indices).eval()
        model.load_state_dict({key: weights[key] for key in model.state_dict()})
        assert len(model.stages) == max(i % (last + 1) for i in indices) + 1
        for i, level in zip(indices, model(x), strict=True):
            torch.testing.assert_close(level, wanted[i])


@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_checkpointing_changes_nothing_but_memory(name, arch, norm_eval):
    settings = dict(drop_path_rate=0.2, norm_eval=norm_eval)
    plain = build(name, arch, **settings).train()
    checkpointed = build(name, arch, with_cp=True, **settings).train()
    x = torch.randn(2, 3, 64, 64)
    maps = {}
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        maps[model] = model(x)
        sum(level.square().mean() for level in maps[model]).backward()
    for a, b in zip(*maps.values(), strict=True):
        torch.testing.assert_close(a, b)
    for (key, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_a_row_of_the_table_is_an_arch(name, arch):
    cls = MODELS.get(name)
    named, given = build(name, arch).state_dict(), build(name, copy.deepcopy(cls.ARCHS[arch])).state_dict()
    assert {key: value.shape for key, value in named.items()} == {key: value.shape for key, value in given.items()}
    with pytest.raises(ValueError, match=r'lacks \[widths\] and has the unknown keys \[width\]'):
        MODELS.build(dict(type=name, arch={**{k: v for k, v in cls.ARCHS[arch].items() if k != 'widths'}, 'width': 1}))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    from mmplugin.layers import DropPath

    torch.manual_seed(0)
    x = torch.ones(4000, 1, 2, 2)
    dropped = DropPath(0.25).train()(x)
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (dropped.amax((1, 2, 3)) == dropped.amin((1, 2, 3))).all()
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(x), x)


@pytest.mark.parametrize('name', ['EfficientFormer', 'EfficientFormerV2', 'EfficientViTMSRA'])
@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arch='x9'), r"has no arch 'x9'; allowed: .*, or a dict"),
        (dict(out_indices=(0, 9)), r'out_indices is \(0, 9\); allowed: different stages from -\d to \d'),
        (dict(out_indices=(0, 0)), 'at least one'),
        (dict(out_indices=()), 'at least one'),
        (dict(frozen_stages=9), r'frozen_stages is 9; allowed: -1 \(nothing\), 0 \(the stem\) to \d'),
        (dict(drop_path_rate=1.5), 'drop_path_rate is 1.5; allowed: 0 and more, below 1'),
        (dict(attention_bias='learned'), "attention_bias is 'learned'; allowed: offset"),
        (dict(pretrain_img_size=384), 'has no argument pretrain_img_size; it takes arch, in_channels, .*init_cfg'),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(name, settings, message):
    arch = {'EfficientFormer': 'l1', 'EfficientFormerV2': 's0', 'EfficientViTMSRA': 'm0'}[name]
    with pytest.raises(UserError, match=message) as caught:
        MODELS.get(name)(**{'arch': arch, **settings})
    assert '\n' not in str(caught.value)


def test_a_small_image_is_refused():
    with pytest.raises(ValueError, match=r'the image is 31x64 .* must be 32 or more'):
        build('EfficientViTMSRA', 'm0')(torch.randn(1, 3, 31, 64))
