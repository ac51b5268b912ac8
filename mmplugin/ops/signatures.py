"""mmcv's C++ signatures, which the wrappers in ``mmcv.ops`` call; most write to tensors that the wrapper allocates.

The wrappers are mmcv's own, with their checks. RoIAlign and RoIPool write directly to the outputs; in ``torch.compile``
and ``torch.export`` they call the ``torch.library`` operator and copy, so that the graph has one node for each.
"""

from torch import Tensor
from torch.compiler import is_compiling

from . import align, focal, library, pooling, suppress
from .align import RoIAlignSpec


def get_compiler_version() -> str:
    """Return the compiler that built the operators: none."""
    return 'none (mmplugin.ops)'


def get_compiling_cuda_version() -> str:
    """Return the version of CUDA that built the operators: none."""
    return 'not available'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that NMS keeps, best first."""
    return library.nms(boxes, scores, iou_threshold, offset)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Write the boxes with the lowered scores to ``dets`` and return their indices."""
    kept, index = library.soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, offset)
    dets[: len(kept)] = kept
    return index


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return groups of indices: each kept box with those that it suppresses."""
    return suppress.nms_match(dets, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled features to ``output``; for the maximum, also its coordinates."""
    spec = RoIAlignSpec(float(spatial_scale), sampling_ratio, pool_mode == 1, aligned)
    if not is_compiling():
        align.forward(input, rois, output, argmax_y, argmax_x, spec)
        return
    results = library.roi_align(input, rois, aligned_height, aligned_width, *spec)
    for target, result in zip((output, argmax_y, argmax_x), results, strict=True):
        target.copy_(result)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of the input to ``grad_input``."""
    spec = RoIAlignSpec(float(spatial_scale), sampling_ratio, pool_mode == 1, aligned)
    if is_compiling():
        shape = list(grad_input.shape)
        grad_input.add_(library.roi_align_backward(grad_output, rois, argmax_y, argmax_x, shape, *spec))
    else:
        align.backward(grad_output, rois, argmax_y, argmax_x, grad_input, spec)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of every bin to ``output`` and its index to ``argmax``."""
    if not is_compiling():
        pooling.forward(input, rois, output, argmax, float(spatial_scale))
        return
    results = library.roi_pool(input, rois, pooled_height, pooled_width, float(spatial_scale))
    output.copy_(results[0])
    argmax.copy_(results[1])


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of the input to ``grad_input``."""
    if is_compiling():
        grad_input.add_(library.roi_pool_backward(grad_output, rois, argmax, list(grad_input.shape)))
    else:
        pooling.backward(grad_output, rois, argmax, grad_input)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each element to ``output``."""
    output.copy_(focal.sigmoid_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element to ``grad_input``."""
    grad_input.copy_(focal.sigmoid_grad(input, target, weight, gamma, alpha))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each row to ``output``."""
    output.copy_(focal.softmax_loss(input, target, weight, gamma, alpha))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each row to ``grad_input``."""
    grad_input.copy_(focal.softmax_grad(input, target, weight, gamma, alpha))


def _sizes(kH: int, kW: int, dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int) -> tuple:
    """Return stride (d in C++), padding and dilation; the kernel size (k) follows from the weight."""
    return [dH, dW], [padH, padW], [dilationH, dilationW]


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    group: int,
    deformable_group: int,
    im2col_step: int,
    **sizes: int,
) -> None:
    """Write the convolution to ``output``; ``columns``, ``ones`` and ``im2col_step`` are not used."""
    output.copy_(library.deform_conv2d(input, offset, None, weight, None, *_sizes(**sizes), group, deformable_group))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    *,
    group: int,
    deformable_group: int,
    im2col_step: int,
    **sizes: int,
) -> None:
    """Write the gradients of the input and the offsets."""
    grads = library.deform_conv2d_backward(
        gradOutput, input, offset, None, weight, *_sizes(**sizes), group, deformable_group
    )
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
    **sizes: int,
) -> None:
    """Add the gradient of the weight, times ``scale``."""
    # The gradient of the weight depends only on the shape of the weight, so any tensor of this shape will do.
    grads = library.deform_conv2d_backward(
        gradOutput, input, offset, None, gradWeight, *_sizes(**sizes), group, deformable_group
    )
    gradWeight.add_(grads[3], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolution to ``output``; ``columns`` and ``ones`` are not used."""
    sizes = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w]
    used_bias = bias if with_bias else None
    output.copy_(library.deform_conv2d(input, offset, mask, weight, used_bias, *sizes, group, deformable_group))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add all gradients to the ``grad_`` tensors."""
    sizes = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w]
    grads = library.deform_conv2d_backward(grad_output, input, offset, mask, weight, *sizes, group, deformable_group)
    for target, grad in zip((grad_input, grad_offset, grad_mask, grad_weight), grads, strict=True):
        target.add_(grad)
    if with_bias:
        grad_bias.add_(grad_output.sum((0, 2, 3)))
