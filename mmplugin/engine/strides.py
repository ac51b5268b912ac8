"""Refuse models whose parts disagree about strides. They would train without an error, but learn nothing."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmplugin.errors import UserError


def _pyramid_strides(backbone: Sequence[int], neck: Any) -> tuple[int, ...]:
    """Return the strides of the neck's outputs; mmdet's FPN keeps levels and adds coarser ones."""
    if neck is None:
        return tuple(backbone)
    if hasattr(neck, 'out_strides'):
        return tuple(neck.out_strides)
    lateral = tuple(backbone[neck.start_level : neck.backbone_end_level])
    return lateral + tuple(lateral[-1] * 2**i for i in range(1, neck.num_outs - len(lateral) + 1))


def check_strides(model: nn.Module) -> None:
    """Compare the strides of backbone, neck, anchors and RoI extractors; skip parts that do not state theirs."""
    model = getattr(model, 'module', model)  # inside a wrapper: distributed, test-time augmentation
    backbone, neck = getattr(getattr(model, 'backbone', None), 'out_strides', None), getattr(model, 'neck', None)
    if backbone is None or not (neck is None or hasattr(neck, 'out_strides') or hasattr(neck, 'backbone_end_level')):
        return
    in_strides = getattr(neck, 'in_strides', backbone)
    if tuple(in_strides) != tuple(backbone):
        _refuse('neck.in_strides', in_strides, 'the backbone returns maps at', backbone, 'out_indices or in_strides')
    pyramid = _pyramid_strides(backbone, neck)
    for name in ('rpn_head', 'bbox_head'):
        generator = getattr(getattr(model, name, None), 'prior_generator', None)
        if generator is not None:
            anchors = tuple(max(stride) for stride in generator.strides)
            if anchors != pyramid:
                full_name = f'{name}.anchor_generator.strides'
                _refuse(full_name, anchors, 'the neck returns', pyramid, 'anchors or neck')
    roi_head = getattr(model, 'roi_head', None)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        strides = getattr(getattr(roi_head, name, None), 'featmap_strides', None)
        if strides is not None and tuple(strides) != pyramid[: len(strides)]:
            full_name = f'roi_head.{name}.featmap_strides'
            _refuse(full_name, strides, 'the neck returns', pyramid, 'extractor or neck')
    head = getattr(model, 'decode_head', None)
    strides = getattr(head, 'feature_strides', None)
    if head is not None and strides is not None:
        selected = tuple(pyramid[i] for i in head.in_index)
        if tuple(strides) != selected:
            _refuse(
                'decode_head.feature_strides', strides, 'at its in_index the neck returns', selected, 'head or neck'
            )


def _refuse(name: str, value: Sequence[int], other: str, expected: Sequence[int], change: str) -> None:
    raise UserError(f'{name} is {list(value)}, but {other} {list(expected)}: change {change} so that both agree')
