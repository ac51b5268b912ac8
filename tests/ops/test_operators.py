"""Every operator against its float64 reference: output, gradients and edge cases."""

import math
from types import SimpleNamespace

import numpy as np
import operator_references as reference
import pytest
import torch
from dispatch_counter import Counted

from mmplugin import ops
from mmplugin.errors import UserError
from mmplugin.ops import align, suppress, weighted_sums


def random_boxes(count: int, seed: int, size: float = 40.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size - 4
    extent = torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat((corner, corner + extent), 1)


def gradients(output: torch.Tensor, inputs, seed: int = 3) -> tuple[torch.Tensor, ...]:
    weights = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad((output.double() * weights).sum(), inputs, retain_graph=True)


def assert_same(found, expected, tolerance: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
def test_nms(threshold, offset, monkeypatch):
    monkeypatch.setattr(suppress, 'BLOCK', 16)  # many blocks with few boxes
    monkeypatch.setattr(suppress, 'PAIRS', 100)
    boxes = random_boxes(150, 0)
    boxes[::10, 2:] = boxes[::10, :2]  # no area
    boxes[5] = boxes[7]
    scores = (torch.rand(150, generator=torch.Generator().manual_seed(1)) * 20).round() / 20  # many ties
    dets, index = ops.nms(boxes, scores, threshold, offset=offset)
    assert index.tolist() == reference.nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[index])


def test_nms_of_a_chain_in_which_each_box_overlaps_only_the_next():
    # Every second box survives, and the last one depends on all before it.
    left = torch.arange(700.0)
    boxes = torch.stack((left * 6, left * 0, left * 6 + 10, left * 0 + 10), 1)
    _, index = ops.nms(boxes, 1 - left / 1000, 0.2)
    assert index.tolist() == list(range(0, 700, 2))


def test_nms_without_boxes_and_with_one_class():
    empty = torch.zeros(0, 4)
    for dets, index in (
        ops.nms(empty, torch.zeros(0), 0.5),
        ops.soft_nms(empty, torch.zeros(0)),
        ops.batched_nms(empty, torch.zeros(0), torch.zeros(0, dtype=torch.int64), dict(iou_threshold=0.5)),
    ):
        assert dets.shape == (0, 5)
        assert index.shape == (0,)
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []
    boxes, scores = random_boxes(60, 2), torch.rand(60, generator=torch.Generator().manual_seed(2))
    one = ops.batched_nms(boxes, scores, torch.full((60,), 7), dict(type='nms', iou_threshold=0.4))
    assert one[1].tolist() == reference.nms(boxes, scores, 0.4)


def test_nms_of_50000_boxes_needs_little_memory():
    boxes = random_boxes(50000, 3, size=3000.0)
    scores = torch.rand(50000, generator=torch.Generator().manual_seed(3))
    # A low threshold keeps few boxes, which makes it fast; memory does not depend on it.
    with Counted() as counted:
        index = suppress.nms(boxes, scores, 0.001)
    assert len(index) < 5000
    assert counted.most_bytes < 5e6  # all 50,000 x 50,000 overlaps would take 1e10 bytes


@pytest.mark.parametrize('split', [10000, 50])
@pytest.mark.parametrize('agnostic', [False, True])
def test_batched_nms(split, agnostic):
    boxes, scores = random_boxes(120, 4), torch.rand(120, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(120) % 4
    cfg = dict(type='nms', iou_threshold=0.4, split_thr=split, class_agnostic=agnostic)
    dets, index = ops.batched_nms(boxes, scores, labels, cfg)
    groups = [range(120)] if agnostic and split > 120 else [range(k, 120, 4) for k in range(4)]
    expected = []
    for group in groups:  # with split_thr, class_agnostic is ignored, as in mmcv
        members = torch.tensor(list(group))
        expected += members[reference.nms(boxes[members], scores[members], 0.4)].tolist()
    assert index.tolist() == sorted(expected, key=lambda i: -scores[i])
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[index])
    top = ops.batched_nms(boxes, scores, labels, dict(cfg, max_num=5))
    assert top[1].tolist() == index[:5].tolist()


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(80, 5).double(), torch.rand(80, generator=torch.Generator().manual_seed(5)).double()
    dets, index = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    expected_scores, expected = reference.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert index.tolist() == expected
    assert_same([dets[:, 4]], [torch.tensor(expected_scores, dtype=torch.float64)])
    assert torch.equal(dets[:, :4], boxes[index])


def test_soft_nms_refuses_unknown_methods():
    with pytest.raises(UserError, match=r"method is 'greedy'; allowed are 'naive', 'linear', 'gaussian'"):
        ops.soft_nms(random_boxes(2, 0), torch.rand(2), method='greedy')


def test_nms_match():
    boxes, scores = random_boxes(90, 6), torch.rand(90, generator=torch.Generator().manual_seed(6))
    boxes[::9, 2:] = boxes[::9, :2]
    dets = torch.cat((boxes, scores[:, None]), 1)
    found = [group.tolist() for group in ops.nms_match(dets, 0.25)]
    assert found == reference.nms_match(dets, 0.25)
    assert sorted(np.concatenate(found)) == list(range(90))


# Inside, across each border, outside, without area, without width, of one pixel, and the whole image.
ROIS = torch.tensor(
    [
        [0, 1.0, 1, 20, 15],
        [1, -30, -20, 8, 9],
        [1, 30, 20, 60, 50],
        [1, 100, 100, 120, 130],
        [0, 5, 5, 5, 5],
        [0, 8, 4, 8, 30],
        [0, 3.3, 2.2, 7.4, 6.1],
        [0, 0, 0, 44, 36],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align(mode, ratio, aligned):
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(7), requires_grad=True)
    found = ops.roi_align(x, ROIS, (3, 2), 0.25, ratio, mode, aligned)
    expected = reference.roi_align(x, ROIS, (3, 2), 0.25, ratio, mode, aligned)
    assert_same([found], [expected])
    assert_same(gradients(found, [x]), gradients(expected, [x]))
    x32 = x.detach().float().requires_grad_()
    found = ops.roi_align(x32, ROIS.float(), (3, 2), 0.25, ratio, mode, aligned)
    assert_same([found, *gradients(found, [x32])], [expected, *gradients(expected, [x])], 2e-5)


def test_roi_align_in_slices_of_channels_and_samples(monkeypatch):
    x = torch.randn(2, 70, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(7), requires_grad=True)
    whole = [ops.roi_align(x, ROIS, 3, 0.25, pool_mode=mode) for mode in ('avg', 'max')]
    monkeypatch.setattr('mmplugin.ops.weighted_sums.SLICE_BYTES', 1)
    monkeypatch.setattr('mmplugin.ops.align.MAX_MODE_SAMPLES', 7)
    parts = [ops.roi_align(x, ROIS, 3, 0.25, pool_mode=mode) for mode in ('avg', 'max')]
    for a, b in zip(whole, parts, strict=True):
        assert_same([a, *gradients(a, [x])], [b, *gradients(b, [x])])


def test_torchvision_gets_the_arguments_of_its_own_operator(monkeypatch):
    """On a GPU torchvision computes the average; here a function with its signature takes its place."""

    def roi_align(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
        size = (pooled_height, pooled_width)
        return reference.roi_align(input, rois, size, spatial_scale, sampling_ratio, 'avg', aligned)

    def _roi_align_backward(
        grad, rois, spatial_scale, pooled_height, pooled_width, batch_size, channels, height, width, *options
    ):
        grad_x = grad.new_zeros(batch_size, channels, height, width)
        spec = align.RoIAlignSpec(spatial_scale, options[0], True, options[1])
        taps = align.roi_taps(rois, grad_x.shape, (pooled_height, pooled_width), spec)
        weighted_sums.spread(grad, taps, grad_x)
        return grad_x

    x = torch.randn(2, 3, 9, 11, dtype=torch.float64, requires_grad=True)
    expected = ops.roi_align(x, ROIS, (3, 2), 0.25, 2)
    expected_grads = gradients(expected, [x])
    operators = SimpleNamespace(roi_align=roi_align, _roi_align_backward=_roi_align_backward)
    monkeypatch.setattr('mmplugin.ops.align.torchvision_operators', lambda x: operators)
    found = ops.roi_align(x, ROIS, (3, 2), 0.25, 2)
    assert_same([found, *gradients(found, [x])], [expected, *expected_grads])


def test_roi_operators_without_rois():
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    for output in (
        ops.roi_align(x, torch.zeros(0, 5), 7),
        ops.roi_align(x, torch.zeros(0, 5), 7, pool_mode='max'),
        ops.roi_pool(x, torch.zeros(0, 5), 7),
    ):
        assert output.shape == (0, 3, 7, 7)
        assert not torch.autograd.grad(output.sum(), x)[0].any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_the_rounded_float32_result(dtype):
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(2, 3, 9, 11, generator=generator).to(dtype).requires_grad_()
    rois = ROIS.float().to(dtype)
    for run in (lambda x, r: ops.roi_align(x, r, 3, 0.25), lambda x, r: ops.roi_pool(x, r, 3, 0.25)):
        half, full = run(x, rois), run(x.float(), rois.float())
        assert half.dtype == dtype
        assert torch.equal(half, full.to(dtype))
        assert gradients(half, [x])[0].dtype == dtype
    boxes, scores = random_boxes(50, 9).to(dtype), torch.rand(50, generator=generator).to(dtype)
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == ops.nms(boxes.float(), scores.float(), 0.5)[1].tolist()
    logits, labels = torch.randn(6, 4, generator=generator).to(dtype), torch.arange(6) % 5
    loss = ops.sigmoid_focal_loss(logits, labels, reduction='none')
    assert torch.equal(loss, ops.sigmoid_focal_loss(logits.float(), labels, reduction='none').to(dtype))


def test_roi_pool():
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(9), requires_grad=True)
    rois = torch.cat((ROIS, ROIS.new_tensor([[0, 9, 9, 7, 8]])))  # the last has no width: mmcv adds 1
    found, expected = ops.roi_pool(x, rois, (3, 2), 0.25), reference.roi_pool(x, rois, (3, 2), 0.25)
    assert_same([found, *gradients(found, [x])], [expected, *gradients(expected, [x])])


@pytest.mark.parametrize('gamma', [0.5, 2.0])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', ['sigmoid_focal_loss', 'softmax_focal_loss'])
def test_focal_losses(name, gamma, weighted):
    generator = torch.Generator().manual_seed(10)
    x = (torch.randn(9, 4, dtype=torch.float64, generator=generator) * 4).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, 1])  # 4 is background
    weight = torch.rand(4, dtype=torch.float64, generator=generator) if weighted else None
    expected = getattr(reference, name)(x, labels, gamma, 0.3, weight)
    run = getattr(ops, name)
    for reduction, scale in (('sum', 1), ('mean', 9)):
        found = run(x, labels, gamma, 0.3, weight, reduction)
        assert_same([found * scale, *gradients(found * scale, [x])], [expected, *gradients(expected, [x])])
    assert_same([run(x, labels, gamma, 0.3, weight, 'none').sum()], [expected])


def test_focal_loss_is_exact_for_large_logits():
    x = torch.tensor([[30.0], [-30.0]])
    loss = ops.sigmoid_focal_loss(x, torch.tensor([1, 0]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[0.75 * 30], [0.25 * 30]]))


@pytest.mark.parametrize(('modulated', 'far'), [(False, 2.0), (True, 0.0), (True, 2.0)])
def test_deform_conv(modulated, far):
    generator = torch.Generator().manual_seed(11)

    def leaf(*shape, scale=1.0):
        return (torch.randn(*shape, dtype=torch.float64, generator=generator) * scale).requires_grad_()

    x, weight, bias = leaf(2, 4, 5, 6), leaf(6, 2, 3, 2), leaf(6)
    sizes = (2, 1), (1, 2), (1, 2), 2, 2  # stride, padding, dilation, groups, deform groups
    # Training starts with offsets of zero, where bilinear sampling has a kink.
    offset, mask = leaf(2, 24, 3, 8, scale=far), leaf(2, 12, 3, 8)
    if modulated:
        found = ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *sizes)
        expected = reference.deform_conv2d(x, offset, mask, weight, *sizes) + bias[:, None, None]
        inputs = [x, offset, mask, weight, bias]
    else:
        found = ops.deform_conv2d(x, offset, weight, *sizes)
        expected = reference.deform_conv2d(x, offset, None, weight, *sizes)
        inputs = [x, offset, weight]
    assert_same([found, *gradients(found, inputs)], [expected, *gradients(expected, inputs)])


def test_deform_conv_without_offsets_is_a_convolution():
    x, weight = torch.randn(1, 4, 7, 8), torch.randn(6, 4, 3, 3)
    found = ops.deform_conv2d(x, torch.zeros(1, 18, 7, 8), weight, padding=1)
    torch.testing.assert_close(found, torch.nn.functional.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)


def test_the_reference_iou_of_two_boxes():
    assert reference.iou([0, 0, 2, 2], [1, 1, 3, 3], 0) == pytest.approx(1 / 7)
    assert reference.iou([0, 0, 2, 2], [1, 1, 3, 3], 1) == pytest.approx(4 / 14)
    assert math.isnan(reference.iou([1, 1, 1, 1], [1, 1, 1, 1], 0))
