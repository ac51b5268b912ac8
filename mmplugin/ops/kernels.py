"""What both doors, mmcv's C++ signatures and the torch.library operators, call: torchvision on a GPU, else torch."""

import torch
from torch import Tensor

from . import align, suppress
from .extension import backend


def _vision(x: Tensor):
    """torchvision's kernels, where they do exactly what mmcv's do; on a CPU the ones here are as fast."""
    return torch.ops.torchvision if x.is_cuda and backend() == 'torchvision' else None


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    vision = _vision(boxes)
    if vision and offset == 0 and len(boxes):
        return vision.nms(boxes.float(), scores.float(), iou_threshold)
    return suppress.nms(boxes, scores, iou_threshold, offset)


def roi_align_forward(
    x: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    scale: float,
    ratio: int,
    average: bool,
    aligned: bool,
) -> None:
    vision = _vision(x)
    if vision and average:
        out_h, out_w = output.shape[2:]
        output.copy_(vision.roi_align(x, rois.type_as(x), scale, out_h, out_w, ratio, aligned))
    else:
        align.forward(x, rois, output, argmax_y, argmax_x, scale, ratio, average, aligned)


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_x: Tensor,
    scale: float,
    ratio: int,
    average: bool,
    aligned: bool,
) -> None:
    vision = _vision(grad)
    if vision and average:
        out_h, out_w = grad.shape[2:]
        grad_x += vision._roi_align_backward(
            grad, rois.type_as(grad), scale, out_h, out_w, *grad_x.shape, ratio, aligned
        )
    else:
        align.backward(grad, rois, argmax_y, argmax_x, grad_x, scale, ratio, average, aligned)
