"""The operators in ONNX: what `torch.onnx.export(..., dynamo=True)` writes in the place of each `mmplugin::` node.

torch.export already keeps how many boxes NMS leaves as a size of its own, so a translation only has to say which nodes
of ONNX compute the same; where none do, it says so.
"""

from collections.abc import Callable

import torch

from ..errors import UserError
from . import library  # noqa: F401  registers torch.ops.mmplugin

_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # onnx.TensorProto's numbers
_NO_LIMIT = torch.iinfo(torch.int64).max


def _nodes():
    """The operators of ONNX. The exporter moves what is written in opset 18 to the one that was asked for."""
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise UserError(
            f'ONNX needs packages that are not here ({error}): `pip install onnx onnxscript onnxruntime`.'
        ) from error
    return opset18


def _columns(table, start: int, stop: int):
    return _nodes().Slice(table, [start], [stop], [1])


# The exporter tells inputs from attributes by the annotations: what has none is a tensor.


def _nms(boxes, scores, iou_threshold: float, offset: int):
    op = _nodes()
    if not 0 <= iou_threshold <= 1:
        raise UserError(f'nms: iou_threshold is {iou_threshold}; ONNX allows 0 to 1.')
    boxes, scores = op.Cast(boxes, to=_FLOAT), op.Cast(scores, to=_FLOAT)
    near, far = _columns(boxes, 0, 2), _columns(boxes, 2, 4)
    if offset:
        far = op.Add(far, op.Constant(value_float=float(offset)))
    # A box of negative size overlaps nothing here. ONNX would swap its corners and see a real one; without area, it
    # overlaps nothing there either.
    boxes = op.Concat(near, op.Max(far, near), axis=1)
    kept = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), _NO_LIMIT, iou_threshold)
    return op.Gather(kept, op.Constant(value_int=2), axis=1)  # (k, 3): image, class, box


def _roi_align(x, rois, height: int, width: int, scale: float, ratio: int, average: bool, aligned: bool):
    op = _nodes()
    if not average:
        raise UserError(
            "roi_align: pool_mode is 'max', which ONNX computes otherwise (the largest weighted pixel, where mmcv "
            "takes the largest interpolated sample); allowed is 'avg'."
        )
    dtype = _DOUBLE if x.dtype == _DOUBLE else _FLOAT  # half is summed in float, as everywhere in mmplugin.ops
    image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=_INT64)
    rois = op.Cast(rois, to=dtype)
    near, far = _columns(rois, 1, 3), _columns(rois, 3, 5)
    if ratio <= 0:
        # A RoI of negative size has no samples here, like one of size 0; in onnxruntime it is an integer overflow.
        far = op.Max(far, near)
    pooled = op.RoiAlign(
        op.Cast(x, to=dtype),
        op.Concat(near, far, axis=1),
        image,
        coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
        mode='avg',
        output_height=height,
        output_width=width,
        sampling_ratio=max(ratio, 0),
        spatial_scale=scale,
    )
    return op.Cast(pooled, to=x.dtype), op.ConstantOfShape([0]), op.ConstantOfShape([0])  # average: no maxima


def _roi_pool(x, rois, height: int, width: int, scale: float):
    raise UserError(
        "roi_pool is not ONNX's MaxRoiPool, which rounds each RoI to whole pixels first; use roi_align with "
        "pool_mode='avg'."
    )


def translations() -> dict[Callable, Callable]:
    """The `custom_translation_table` of `torch.onnx.export(..., dynamo=True)`."""
    _nodes()  # what is missing is said before minutes of tracing
    operators = torch.ops.mmplugin
    return {
        operators.nms.default: _nms,
        operators.roi_align.default: _roi_align,
        operators.roi_pool.default: _roi_pool,
    }
