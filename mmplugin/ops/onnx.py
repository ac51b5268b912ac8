"""The operators in ONNX: what ``torch.onnx.export(..., dynamo=True)`` writes for each ``mmplugin::`` node.

In an exported program the number of boxes that NMS keeps is a symbolic size already, so a translation only chooses
ONNX nodes that compute the same; if there are none, it raises an error.
"""

from collections.abc import Callable

import torch

from mmplugin.errors import UserError

from . import library  # noqa: F401  registers torch.ops.mmplugin

_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # onnx.TensorProto's numbers
_NO_LIMIT = torch.iinfo(torch.int64).max


def _nodes():
    """Return the operators of ONNX opset 18, which the exporter converts to the requested opset."""
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise UserError(
            f'ONNX export needs packages that are not installed ({error}): `pip install onnx onnxscript onnxruntime`.'
        ) from error
    return opset18


def _columns(table, start: int, stop: int):
    return _nodes().Slice(table, [start], [stop], [1])


# By the annotations the exporter distinguishes attributes from tensors, which have none.


def _nms(boxes, scores, iou_threshold: float, offset: int):
    op = _nodes()
    if not 0 <= iou_threshold <= 1:
        raise UserError(f'nms: iou_threshold is {iou_threshold}; ONNX allows 0 to 1.')
    boxes, scores = op.Cast(boxes, to=_FLOAT), op.Cast(scores, to=_FLOAT)
    near, far = _columns(boxes, 0, 2), _columns(boxes, 2, 4)
    if offset:
        far = op.Add(far, op.Constant(value_float=float(offset)))
    # A box of negative size overlaps no other, but ONNX would swap its corners to make it positive. With an area of 0
    # it overlaps no other in ONNX either.
    boxes = op.Concat(near, op.Max(far, near), axis=1)
    kept = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), _NO_LIMIT, iou_threshold)
    return op.Gather(kept, op.Constant(value_int=2), axis=1)  # (k, 3): image, class, box


def _roi_align(x, rois, height: int, width: int, scale: float, ratio: int, average: bool, aligned: bool):
    op = _nodes()
    if not average:
        raise UserError(
            "roi_align: pool_mode is 'max', which ONNX defines differently (the maximum of weighted pixels instead of "
            "interpolated samples); allowed is 'avg'."
        )
    dtype = _DOUBLE if x.dtype == _DOUBLE else _FLOAT  # half precision is summed in float32, as in torch
    image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=_INT64)
    rois = op.Cast(rois, to=dtype)
    near, far = _columns(rois, 1, 3), _columns(rois, 3, 5)
    if ratio <= 0:
        # A RoI of negative size has no samples, as one of size 0; in onnxruntime it is an integer overflow.
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
    return op.Cast(pooled, to=x.dtype), op.ConstantOfShape([0]), op.ConstantOfShape([0])  # no coordinates of maxima


def _roi_pool(x, rois, height: int, width: int, scale: float):
    raise UserError(
        "roi_pool cannot be exported: ONNX's MaxRoiPool rounds each RoI to whole pixels first. Use roi_align with "
        "pool_mode='avg'."
    )


def translations() -> dict[Callable, Callable]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export(..., dynamo=True)``."""
    _nodes()  # fail before minutes of tracing if packages are missing
    operators = torch.ops.mmplugin
    return {
        operators.nms.default: _nms,
        operators.roi_align.default: _roi_align,
        operators.roi_pool.default: _roi_pool,
    }
