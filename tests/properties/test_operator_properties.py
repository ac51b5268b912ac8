"""NMS and RoIAlign against their definitions for any boxes, degenerate ones too."""

import operator_references as reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from properties.strategies import SEEDS, tensor

from mmplugin import ops

# Multiples of 1/4 are exact in float32, so that an overlap equals the threshold in both or in none.
COORDINATE = st.integers(-16, 80).map(lambda number: number / 4)
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
PROPER = BOX.map(lambda box: (min(box[::2]), min(box[1::2]), max(box[::2]), max(box[1::2])))


@settings(max_examples=60)
@given(
    boxes=st.lists(PROPER, max_size=25),
    scores=st.lists(st.integers(0, 8), min_size=25, max_size=25),
    threshold=st.sampled_from((0.0, 0.31, 0.5, 0.7)),
    offset=st.sampled_from((0, 1)),
    labels=st.lists(st.integers(0, 2), min_size=25, max_size=25),
)
def test_nms_keeps_the_boxes_of_its_definition(boxes, scores, threshold, offset, labels):
    boxes = torch.tensor(boxes).view(-1, 4)
    scores = torch.tensor(scores[: len(boxes)], dtype=torch.float32) / 8
    pairs = [reference.iou(a, b, offset) for a in boxes.tolist() for b in boxes.tolist()]
    assume(not any(threshold and abs(overlap - threshold) < 1e-6 for overlap in pairs))
    dets, index = ops.nms(boxes, scores, threshold, offset=offset)
    assert index.tolist() == reference.nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[index])

    labels = torch.tensor(labels[: len(boxes)], dtype=torch.long)
    _, index = ops.batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.31))
    wanted = []
    for label in range(3):
        members = (labels == label).nonzero()[:, 0]
        wanted += members[reference.nms(boxes[members], scores[members], 0.31)].tolist()
    assert sorted(index.tolist()) == sorted(wanted)


@settings(max_examples=60)
@given(
    boxes=st.lists(st.tuples(st.integers(0, 1).map(float), *[COORDINATE] * 4), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    image=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    scale=st.sampled_from((1.0, 0.5, 0.25)),
    ratio=st.integers(0, 2),
    mode=st.sampled_from(('avg', 'max')),
    aligned=st.booleans(),
    seed=SEEDS,
)
def test_roi_align_equals_its_definition(boxes, size, image, scale, ratio, mode, aligned, seed):
    """Also for boxes without area, with swapped corners, and outside of the image."""
    x = tensor(seed, 2, 2, *image).double().requires_grad_()
    rois = torch.tensor(boxes, dtype=torch.float64)
    found = ops.roi_align(x, rois, size, scale, ratio, mode, aligned)
    wanted = reference.roi_align(x, rois, size, scale, ratio, mode, aligned)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    if mode == 'avg' and wanted.requires_grad:
        grads = [torch.autograd.grad(result.square().sum(), x)[0] for result in (found, wanted)]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
