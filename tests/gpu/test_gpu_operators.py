"""Every operator of ``mmplugin.ops`` on the device against its float64 reference on the CPU."""

import operator_references as reference
import pytest
import torch
from gpu.support import DEVICE
from torch import Tensor

from mmplugin import ops

pytestmark = pytest.mark.gpu

DTYPES = [torch.float64, torch.float32]
# Inside, across a border, wholly outside, without area, without extent in one axis, of one pixel, the whole map.
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


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, seed: int, size: float = 40.0) -> Tensor:
    corner = torch.rand(count, 2, generator=generator(seed)) * size - 4
    extent = torch.rand(count, 2, generator=generator(seed + 100)) * size / 2
    return torch.cat((corner, corner + extent), 1)


def leaf(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64, generator=generator(seed)) * scale).requires_grad_()


def on_device(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A copy on the device that is a leaf of its own."""
    if tensor is None:
        return None
    return tensor.detach().to(DEVICE, dtype).requires_grad_(tensor.requires_grad)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator(3)).to(output.device)
    return torch.autograd.grad((output.double() * weights).sum(), inputs)


def assert_same(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 3e-5}[dtype]
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == DEVICE.type
        assert a.dtype == dtype
        torch.testing.assert_close(a.cpu().double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
def test_nms_keeps_the_boxes_of_the_definition(threshold, offset):
    boxes = random_boxes(150, 0)
    boxes[::10, 2:] = boxes[::10, :2]  # no area
    boxes[5] = boxes[7]
    scores = (torch.rand(150, generator=generator(1)) * 20).round() / 20  # many ties
    dets, index = ops.nms(boxes.to(DEVICE), scores.to(DEVICE), threshold, offset=offset)
    assert index.device.type == DEVICE.type
    assert index.tolist() == reference.nms(boxes, scores, threshold, offset)
    assert torch.equal(dets.cpu(), torch.cat((boxes, scores[:, None]), 1)[index.cpu()])


def test_nms_of_more_boxes_than_a_block():
    boxes, scores = random_boxes(1500, 2, size=200.0), torch.rand(1500, generator=generator(2))
    _, index = ops.nms(boxes.to(DEVICE), scores.to(DEVICE), 0.4)
    assert index.tolist() == reference.nms(boxes, scores, 0.4)


def test_nms_settles_a_chain_of_overlaps():
    # Each box overlaps only the next: every second one survives, and the last depends on all before it.
    left = torch.arange(700.0)
    boxes = torch.stack((left * 6, left * 0, left * 6 + 10, left * 0 + 10), 1).to(DEVICE)
    _, index = ops.nms(boxes, (1 - left / 1000).to(DEVICE), 0.2)
    assert index.tolist() == list(range(0, 700, 2))


@pytest.mark.parametrize('split_threshold', [10000, 50])
def test_batched_nms_separates_the_classes(split_threshold):
    boxes, scores, labels = random_boxes(120, 4), torch.rand(120, generator=generator(4)), torch.arange(120) % 4
    cfg = dict(type='nms', iou_threshold=0.4, split_thr=split_threshold)
    dets, index = ops.batched_nms(boxes.to(DEVICE), scores.to(DEVICE), labels.to(DEVICE), cfg)
    expected: list[int] = []
    for label in range(4):
        members = torch.arange(label, 120, 4)
        expected += members[reference.nms(boxes[members], scores[members], 0.4)].tolist()
    assert index.tolist() == sorted(expected, key=lambda i: -scores[i])
    assert torch.equal(dets.cpu(), torch.cat((boxes, scores[:, None]), 1)[index.cpu()])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_decays_as_the_definition(method):
    boxes, scores = random_boxes(80, 5).double(), torch.rand(80, generator=generator(5)).double()
    dets, index = ops.soft_nms(boxes.to(DEVICE), scores.to(DEVICE), 0.3, 0.5, 0.05, method)
    expected_scores, expected = reference.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method)
    assert index.device.type == DEVICE.type
    assert index.tolist() == expected
    assert_same([dets[:, 4]], [torch.tensor(expected_scores, dtype=torch.float64)], torch.float64)


def test_nms_match_groups_as_the_definition():
    boxes, scores = random_boxes(90, 6), torch.rand(90, generator=generator(6))
    dets = torch.cat((boxes, scores[:, None]), 1)
    groups = ops.nms_match(dets.to(DEVICE), 0.25)
    assert [group.tolist() for group in groups] == reference.nms_match(dets, 0.25)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_and_its_gradient(mode, ratio, aligned):
    x = leaf(2, 3, 9, 11, seed=7)
    expected = reference.roi_align(x, ROIS, (3, 2), 0.25, ratio, mode, aligned)
    expected = [expected, *gradients(expected, [x])]
    for dtype in DTYPES:
        moved = on_device(x, dtype)
        found = ops.roi_align(moved, ROIS.to(DEVICE, dtype), (3, 2), 0.25, ratio, mode, aligned)
        assert_same([found, *gradients(found, [moved])], expected, dtype)


def test_roi_pool_and_its_gradient():
    x = leaf(2, 3, 9, 11, seed=9)
    expected = reference.roi_pool(x, ROIS, (3, 2), 0.25)
    expected = [expected, *gradients(expected, [x])]
    for dtype in DTYPES:
        moved = on_device(x, dtype)
        found = ops.roi_pool(moved, ROIS.to(DEVICE, dtype), (3, 2), 0.25)
        assert_same([found, *gradients(found, [moved])], expected, dtype)


@pytest.mark.parametrize('far', [0.0, 2.0])
@pytest.mark.parametrize('modulated', [False, True])
def test_deformable_convolution_and_its_gradients(modulated, far):
    # Offsets of zero are where training starts, and where bilinear sampling has a kink.
    x, weight, bias = leaf(2, 4, 5, 6, seed=11), leaf(6, 2, 3, 2, seed=12), leaf(6, seed=13)
    offset, mask = leaf(2, 24, 3, 8, seed=14, scale=far), leaf(2, 12, 3, 8, seed=15)
    sizes = (2, 1), (1, 2), (1, 2), 2, 2  # stride, padding, dilation, groups, deform groups
    inputs = [x, offset, mask, weight, bias] if modulated else [x, offset, weight]
    expected = reference.deform_conv2d(x, offset, mask if modulated else None, weight, *sizes)
    expected = expected + bias[:, None, None] if modulated else expected
    expected = [expected, *gradients(expected, inputs)]
    for dtype in DTYPES:
        moved = [on_device(tensor, dtype) for tensor in inputs]
        found = (ops.modulated_deform_conv2d if modulated else ops.deform_conv2d)(*moved, *sizes)
        assert_same([found, *gradients(found, moved)], expected, dtype)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', ['sigmoid_focal_loss', 'softmax_focal_loss'])
def test_focal_losses_and_their_gradients(name, weighted):
    x = leaf(9, 4, seed=10, scale=3.0)
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, 1])  # 4 is background
    weight = torch.rand(4, dtype=torch.float64, generator=generator(10)) if weighted else None
    expected = getattr(reference, name)(x, labels, 2.0, 0.3, weight)
    expected = [expected, *gradients(expected, [x])]
    for dtype in DTYPES:
        moved = on_device(x, dtype)
        found = getattr(ops, name)(moved, labels.to(DEVICE), 2.0, 0.3, on_device(weight, dtype), 'sum')
        assert_same([found, *gradients(found, [moved])], expected, dtype)


def test_operators_of_nothing():
    empty, x = torch.zeros(0, 4, device=DEVICE), torch.randn(1, 3, 8, 8, device=DEVICE, requires_grad=True)
    for dets, index in (ops.nms(empty, empty[:, 0], 0.5), ops.soft_nms(empty, empty[:, 0])):
        assert dets.shape == (0, 5)
        assert index.shape == (0,)
    rois = torch.zeros(0, 5, device=DEVICE)
    for output in (ops.roi_align(x, rois, 7), ops.roi_align(x, rois, 7, pool_mode='max'), ops.roi_pool(x, rois, 7)):
        assert output.shape == (0, 3, 7, 7)
        assert not torch.autograd.grad(output.sum(), x)[0].any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_the_float32_result_rounded(dtype):
    x = torch.randn(2, 3, 9, 11, generator=generator(8)).to(DEVICE, dtype).requires_grad_()
    rois = ROIS.to(DEVICE, dtype)
    # bfloat16 RoIs are the same numbers in float32; torchvision's kernel, where it is used, rounds more than once.
    tolerance = 2 * torch.finfo(dtype).eps
    for run in (lambda x, r: ops.roi_align(x, r, 3, 0.25), lambda x, r: ops.roi_pool(x, r, 3, 0.25)):
        half, full = run(x, rois), run(x.float(), rois.float())
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, rtol=tolerance, atol=tolerance)
        assert gradients(half, [x])[0].dtype == dtype
    logits, labels = torch.randn(6, 4, generator=generator(8)).to(DEVICE, dtype), (torch.arange(6) % 5).to(DEVICE)
    half, full = (ops.sigmoid_focal_loss(value, labels, reduction='none') for value in (logits, logits.float()))
    torch.testing.assert_close(half.float(), full, rtol=tolerance, atol=tolerance)


def test_operators_run_inside_autocast():
    x, rois = torch.randn(2, 3, 9, 11, device=DEVICE, requires_grad=True), ROIS.to(DEVICE, torch.float32)
    offset = torch.randn(2, 18, 9, 11, device=DEVICE).half()  # the convolution that makes offsets returns half
    weight = torch.randn(6, 3, 3, 3, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE.type, torch.float16):
        pooled, moved = ops.roi_align(x, rois, 3, 0.25), ops.deform_conv2d(x, offset, weight, padding=1)
    torch.testing.assert_close(pooled, ops.roi_align(x, rois, 3, 0.25), rtol=2e-3, atol=2e-3)
    assert moved.dtype == torch.float16
    expected = ops.deform_conv2d(x, offset.float(), weight, padding=1)
    torch.testing.assert_close(moved.float(), expected, rtol=2e-2, atol=2e-2)
    for gradient in torch.autograd.grad(pooled.float().sum() + moved.float().sum(), [x, weight]):
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
