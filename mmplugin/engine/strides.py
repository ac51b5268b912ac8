"""Refuses models whose parts disagree about strides: they train without an error, to nothing."""

from collections.abc import Sequence

from torch import nn

from mmplugin.errors import UserError


def _pyramid_strides(backbone: Sequence[int], neck: nn.Module | None) -> tuple[int, ...]:
    """What comes out of the neck; mmdet's FPN keeps levels and adds coarser ones."""
    if neck is None:
        return tuple(backbone)
    if hasattr(neck, 'out_strides'):
        return tuple(neck.out_strides)
    kept = tuple(backbone[neck.start_level : neck.backbone_end_level])
    return kept + tuple(kept[-1] * 2**i for i in range(1, neck.num_outs - len(kept) + 1))


def check_strides(model: nn.Module) -> None:
    """Compares backbone, neck, anchors and RoI extractors; says nothing about parts that do not tell their strides."""
    model = getattr(model, 'module', model)  # out of a wrapper: distributed, test-time augmentation
    backbone, neck = getattr(getattr(model, 'backbone', None), 'out_strides', None), getattr(model, 'neck', None)
    if backbone is None or not (neck is None or hasattr(neck, 'out_strides') or hasattr(neck, 'backbone_end_level')):
        return
    given = getattr(neck, 'in_strides', backbone)
    if tuple(given) != tuple(backbone):
        _refuse('neck.in_strides', given, 'the backbone returns maps at', backbone, 'out_indices or in_strides')
    pyramid = _pyramid_strides(backbone, neck)
    for name in ('rpn_head', 'bbox_head'):
        generator = getattr(getattr(model, name, None), 'prior_generator', None)
        if generator is not None:
            strides = tuple(max(stride) for stride in generator.strides)
            if strides != pyramid:
                full_name = f'{name}.anchor_generator.strides'
                _refuse(full_name, strides, 'the neck returns', pyramid, 'anchors or neck')
    roi_head = getattr(model, 'roi_head', None)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        strides = getattr(getattr(roi_head, name, None), 'featmap_strides', None)
        if strides is not None and tuple(strides) != pyramid[: len(strides)]:
            full_name = f'roi_head.{name}.featmap_strides'
            _refuse(full_name, strides, 'the neck returns', pyramid, 'extractor or neck')
    head = getattr(model, 'decode_head', None)
    strides = getattr(head, 'feature_strides', None)
    if strides is not None:
        read = tuple(pyramid[i] for i in head.in_index)
        if tuple(strides) != read:
            _refuse('decode_head.feature_strides', strides, 'at its in_index the neck returns', read, 'head or neck')


def _refuse(name: str, value: Sequence[int], other: str, expected: Sequence[int], change: str) -> None:
    raise UserError(f'{name} is {list(value)}, but {other} {list(expected)}: change {change} so that both agree')
