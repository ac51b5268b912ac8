"""mmcv's C++ signatures: what the wrappers in `mmcv.ops` call, writing into the tensors that they bring.

The wrappers stay mmcv's, with their checks and registrations. Run as usual, the kernels write straight into the
outputs. Under torch.compile and torch.export the torch.library operator stands in the graph instead, whole.
"""

from torch import Tensor
from torch.compiler import is_compiling

from . import focal, kernels, library, pooling, suppress


def get_compiler_version() -> str:
    return 'none (mmplugin.ops)'


def get_compiling_cuda_version() -> str:
    return 'not available'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    run = library.nms if is_compiling() else kernels.nms
    return run(boxes, scores, iou_threshold, offset)


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
    kept, index = library.soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, offset)
    dets[: len(kept)] = kept
    return index


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
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
    options = (float(spatial_scale), sampling_ratio, pool_mode == 1, aligned)
    if not is_compiling():
        kernels.roi_align_forward(input, rois, output, argmax_y, argmax_x, *options)
        return
    found = library.roi_align(input, rois, aligned_height, aligned_width, *options)
    for target, value in zip((output, argmax_y, argmax_x), found, strict=True):
        target.copy_(value)


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
    options = (float(spatial_scale), sampling_ratio, pool_mode == 1, aligned)
    if is_compiling():
        shape = list(grad_input.shape)
        grad_input.add_(library.roi_align_backward(grad_output, rois, argmax_y, argmax_x, shape, *options))
    else:
        kernels.roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, *options)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    if not is_compiling():
        pooling.forward(input, rois, output, argmax, float(spatial_scale))
        return
    found = library.roi_pool(input, rois, pooled_height, pooled_width, float(spatial_scale))
    output.copy_(found[0])
    argmax.copy_(found[1])


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    if is_compiling():
        grad_input.add_(library.roi_pool_backward(grad_output, rois, argmax, list(grad_input.shape)))
    else:
        pooling.backward(grad_output, rois, argmax, grad_input)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(focal.sigmoid_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    grad_input.copy_(focal.sigmoid_grad(input, target, weight, gamma, alpha))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(focal.softmax_loss(input, target, weight, gamma, alpha))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    grad_input.copy_(focal.softmax_grad(input, target, weight, gamma, alpha))


def _plain(kH: int, kW: int, dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int) -> tuple:
    """The C++ names: d is the stride. The kernel's size is the weight's."""
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
    output.copy_(library.deform_conv2d(input, offset, None, weight, None, *_plain(**sizes), group, deformable_group))


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
    grads = library.deform_conv2d_backward(
        gradOutput, input, offset, None, weight, *_plain(**sizes), group, deformable_group
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
    # The weight's own gradient does not depend on the weight; its shape is all that is needed here.
    grads = library.deform_conv2d_backward(
        gradOutput, input, offset, None, gradWeight, *_plain(**sizes), group, deformable_group
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
    sizes = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w]
    bias = bias if with_bias else None
    output.copy_(library.deform_conv2d(input, offset, mask, weight, bias, *sizes, group, deformable_group))


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
    sizes = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w]
    found = library.deform_conv2d_backward(grad_output, input, offset, mask, weight, *sizes, group, deformable_group)
    for target, value in zip((grad_input, grad_offset, grad_mask, grad_weight), found, strict=True):
        target.add_(value)
    if with_bias:
        grad_bias.add_(grad_output.sum((0, 2, 3)))
