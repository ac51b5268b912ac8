"""UpsampledFPN: strides that it returns, strides that it refuses, and equality with mmdet's FPN."""

import pytest
import torch

from mmplugin.errors import UserError
from mmplugin.necks import UpsampledFPN


def _maps(channels, strides, height=192, width=160):
    return [torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.parametrize(
    ('out_strides', 'extra'),
    [
        ((4, 8, 16, 32, 64), False),
        ((8, 16, 32, 64, 128), 'on_input'),
        ((4, 8, 16, 32), False),
        ((32, 64, 128, 256), 'on_lateral'),
        ((16, 32, 64, 128), 'on_output'),
    ],
)
def test_output_strides_are_as_requested_and_every_weight_gets_a_gradient(out_strides, extra):
    neck = UpsampledFPN((6, 8, 10), (16, 32, 64), 16, out_strides, add_extra_convs=extra)
    outs = neck(_maps((6, 8, 10), (16, 32, 64)))
    assert [(out.shape[1], *out.shape[2:]) for out in outs] == [(16, -(-192 // s), -(-160 // s)) for s in out_strides]
    sum(out.sum() for out in outs).backward()
    assert all(value.grad is not None for value in neck.parameters())


@pytest.mark.parametrize('extra', [False, 'on_input', 'on_output'])
def test_equals_mmdets_fpn_and_loads_its_weights(extra):
    from mmdet.models.necks import FPN

    stock = FPN([6, 8, 10], 16, 5, add_extra_convs=extra)
    ours = UpsampledFPN((6, 8, 10), (8, 16, 32), 16, (8, 16, 32, 64, 128), add_extra_convs=extra)
    ours.load_state_dict(stock.state_dict(), strict=True)
    maps = _maps((6, 8, 10), (8, 16, 32), 168, 136)
    for mine, theirs in zip(ours(maps), stock(maps), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_finer_levels_are_aligned_with_the_image():
    """A mark in one corner of the coarse map stays in that corner of the fine one: no shift by half a cell."""
    neck = UpsampledFPN((1,), (16,), 1, (8, 16))
    for value in neck.parameters():
        torch.nn.init.constant_(value, 0.0)
    neck.lateral_convs[0].conv.weight.data.fill_(1.0)
    neck.upsample_convs[0].conv.weight.data.fill_(1.0)
    neck.upsampled_fpn_convs[0].conv.weight.data[0, 0, 1, 1] = 1.0
    mark = torch.zeros(1, 1, 4, 4)
    mark[..., 0, 3] = 1.0
    fine = neck([mark])[0][0, 0]
    assert fine.nonzero().tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'out_strides': (4, 16, 32)}, 'each twice the one before'),
        ({'in_strides': (16, 32, 48)}, 'powers of two'),
        ({'in_strides': (16, 32)}, '3 in_channels, but 2 in_strides'),
        ({'out_strides': (4, 8)}, 'no level in common'),
        ({'add_extra_convs': 'on_top'}, 'allowed'),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    settings = dict(in_channels=(6, 8, 10), in_strides=(16, 32, 64), out_channels=8, out_strides=(8, 16, 32, 64))
    with pytest.raises(UserError, match=message):
        UpsampledFPN(**{**settings, **change})


def test_maps_of_other_strides_are_refused():
    neck = UpsampledFPN((6, 8, 10), (16, 32, 64), 8, (8, 16, 32, 64))
    with pytest.raises(UserError, match='out_indices'):
        neck(_maps((6, 8, 10), (8, 32, 64)))
    with pytest.raises(UserError, match='channels'):
        neck(_maps((6, 6, 10), (16, 32, 64)))
