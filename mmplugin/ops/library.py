"""The operators in ``torch.library``: opaque to ``torch.compile`` and ``torch.export``, with shapes and gradients.

The number of boxes that NMS keeps and of samples that RoIAlign takes depends on the data: tracing them would break the
graph, or make the numbers of one image constants of it.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from . import align, deform, pooling, suppress
from .align import RoIAlignSpec
from .deform import Geometry


@custom_op('mmplugin::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that NMS keeps, best first."""
    return suppress.nms(boxes, scores, iou_threshold, offset)


@nms.register_fake
def _(boxes, scores, iou_threshold, offset):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@custom_op('mmplugin::soft_nms', mutates_args=())
def soft_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int
) -> tuple[Tensor, Tensor]:
    """Return dets (k, 5) with the lowered scores, and their indices."""
    dets, index = suppress.soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, offset)
    return dets.to(boxes), index.to(boxes.device)


@soft_nms.register_fake
def _(boxes, scores, iou_threshold, sigma, min_score, method, offset):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, 5), boxes.new_empty(kept, dtype=torch.int64)


@custom_op('mmplugin::roi_align', mutates_args=())
def roi_align(
    x: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, average: bool, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pooled features, and the coordinates of the maxima, empty for the average."""
    output = x.new_empty(len(rois), x.shape[1], height, width)
    argmax_y = x.new_empty(0 if average else output.shape)
    argmax_x = torch.empty_like(argmax_y)
    align.forward(x, rois, output, argmax_y, argmax_x, RoIAlignSpec(scale, ratio, average, aligned))
    return output, argmax_y, argmax_x


@roi_align.register_fake
def _(x, rois, height, width, scale, ratio, average, aligned):
    output = x.new_empty(rois.shape[0], x.shape[1], height, width)
    argmax = x.new_empty(0 if average else output.shape)
    return output, argmax, torch.empty_like(argmax)


@custom_op('mmplugin::roi_align_backward', mutates_args=())
def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    shape: list[int],
    scale: float,
    ratio: int,
    average: bool,
    aligned: bool,
) -> Tensor:
    """Return the gradient of x."""
    grad_x = grad.new_zeros(shape)
    align.backward(grad, rois, argmax_y, argmax_x, grad_x, RoIAlignSpec(scale, ratio, average, aligned))
    return grad_x


@roi_align_backward.register_fake
def _(grad, rois, argmax_y, argmax_x, shape, *spec):
    return grad.new_empty(shape)


def _roi_align_setup(ctx, inputs, output):
    x, rois, _, _, *ctx.options = inputs
    ctx.shape = x.shape
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(rois, *output[1:])


def _roi_align_grad(ctx, grad, *_):
    return roi_align_backward(grad, *ctx.saved_tensors, ctx.shape, *ctx.options), *(None,) * 7


roi_align.register_autograd(_roi_align_grad, setup_context=_roi_align_setup)


@custom_op('mmplugin::roi_pool', mutates_args=())
def roi_pool(x: Tensor, rois: Tensor, height: int, width: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the maximum of every bin, and its flat index into the pixels of the image."""
    output = x.new_empty(len(rois), x.shape[1], height, width)
    argmax = torch.empty_like(output, dtype=torch.int32)
    pooling.forward(x, rois, output, argmax, scale)
    return output, argmax


@roi_pool.register_fake
def _(x, rois, height, width, scale):
    output = x.new_empty(rois.shape[0], x.shape[1], height, width)
    return output, torch.empty_like(output, dtype=torch.int32)


@custom_op('mmplugin::roi_pool_backward', mutates_args=())
def roi_pool_backward(grad: Tensor, rois: Tensor, argmax: Tensor, shape: list[int]) -> Tensor:
    """Return the gradient of x."""
    grad_x = grad.new_zeros(shape)
    pooling.backward(grad, rois, argmax, grad_x)
    return grad_x


@roi_pool_backward.register_fake
def _(grad, rois, argmax, shape):
    return grad.new_empty(shape)


def _roi_pool_setup(ctx, inputs, output):
    ctx.shape = inputs[0].shape
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[1], output[1])


def _roi_pool_grad(ctx, grad, _):
    return roi_pool_backward(grad, *ctx.saved_tensors, ctx.shape), None, None, None, None


roi_pool.register_autograd(_roi_pool_grad, setup_context=_roi_pool_setup)


@custom_op('mmplugin::deform_conv2d', mutates_args=())
def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Return the deformable convolution, modulated if there is a mask."""
    return deform.forward(x, offset, mask, weight, bias, Geometry(stride, padding, dilation, groups, deform_groups))


@deform_conv2d.register_fake
def _(x, offset, mask, weight, bias, *geometry):
    size = deform.output_size(x, weight, Geometry(*geometry))
    return x.new_empty(len(x), len(weight), *size)


@custom_op('mmplugin::deform_conv2d_backward', mutates_args=())
def deform_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    deform_groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, offset, mask (empty without one) and weight."""
    grads = deform.backward(grad, x, offset, mask, weight, Geometry(stride, padding, dilation, groups, deform_groups))
    return grads.x, grads.offset, x.new_empty(0) if grads.mask is None else grads.mask, grads.weight


@deform_conv2d_backward.register_fake
def _(grad, x, offset, mask, weight, *geometry):
    mask_grad = x.new_empty(0) if mask is None else torch.empty_like(mask)
    return torch.empty_like(x), torch.empty_like(offset), mask_grad, torch.empty_like(weight)


def _deform_setup(ctx, inputs, output):
    x, offset, mask, weight, bias, *ctx.options = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, offset, mask, weight)


def _deform_grad(ctx, grad):
    mask = ctx.saved_tensors[2]
    by_x, by_offset, by_mask, by_weight = deform_conv2d_backward(grad, *ctx.saved_tensors, *ctx.options)
    by_bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
    return by_x, by_offset, None if mask is None else by_mask, by_weight, by_bias, *(None,) * 5


deform_conv2d.register_autograd(_deform_grad, setup_context=_deform_setup)
