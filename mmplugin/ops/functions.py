"""The operators as functions with the arguments and results of those in ``mmcv.ops``, without mmcv."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from mmplugin.errors import UserError

from . import focal, library, suppress

SOFT_METHODS = {'naive': 0, 'linear': 1, 'gaussian': 2}


def _choice(name: str, value: str, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise UserError(f'{name} is {value!r}; allowed are {", ".join(map(repr, allowed))}.')
    return value


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0.0,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    """Keep the boxes that no better box overlaps by more than the threshold.

    Returns:
        dets (k, 5), best first, and their indices (k,).
    """
    if score_threshold > 0:
        candidates = (scores > score_threshold).nonzero()[:, 0]
        index = candidates[library.nms(boxes[candidates], scores[candidates], iou_threshold, offset)]
    else:
        index = library.nms(boxes, scores, iou_threshold, offset)
    index = index[:max_num] if max_num > 0 else index
    return torch.cat((boxes[index], scores[index, None]), 1), index


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = 'linear',
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of overlapping boxes.

    Returns:
        dets (k, 5) with the new scores, best first, and their indices (k,).
    """
    number = SOFT_METHODS[_choice('method', method, SOFT_METHODS)]
    return library.soft_nms(boxes, scores, iou_threshold, sigma, min_score, number, offset)


def nms_match(dets: Tensor, iou_threshold: float) -> list[Tensor]:
    """Return groups of indices of dets (n, 5): each kept box with those that it suppresses."""
    return [dets.new_tensor(group, dtype=torch.int64) for group in suppress.nms_match(dets, iou_threshold)]


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply NMS to each class.

    Args:
        boxes: (n, 4).
        scores: (n,).
        idxs: Class of each box, (n,).
        nms_cfg: ``type`` ('nms' or 'soft_nms'), the arguments of that function, ``class_agnostic``, and ``split_thr``,
            the number of boxes from which the classes are processed one by one. None only sorts.
        class_agnostic: Ignore the classes.

    Returns:
        dets (k, 5), best first, and their indices (k,).
    """
    if nms_cfg is None:
        scores, index = scores.sort(descending=True)
        return torch.cat((boxes[index], scores[:, None]), 1), index
    cfg = dict(nms_cfg)
    kinds: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {'nms': nms, 'soft_nms': soft_nms}
    run = kinds[_choice('nms_cfg.type', cfg.pop('type', 'nms'), tuple(kinds))]
    split_threshold = cfg.pop('split_thr', 10000)
    if cfg.pop('class_agnostic', class_agnostic) or len(boxes) == 0:
        separate = boxes
    else:  # shift each class, so that boxes of different classes do not overlap
        separate = boxes + (idxs.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < split_threshold:
        dets, index = run(separate, scores, **cfg)
        return torch.cat((boxes[index], dets[:, 4:]), 1), index
    max_num = cfg.pop('max_num', -1)
    kept, kept_scores = [], []
    for label in idxs.unique():
        members = (idxs == label).nonzero()[:, 0]
        dets, index = run(separate[members], scores[members], **cfg)
        kept.append(members[index])
        kept_scores.append(dets[:, 4])
    index, by_index = torch.cat(kept).sort()
    scores, order = torch.cat(kept_scores)[by_index].sort(descending=True, stable=True)
    if max_num > 0:
        scores, order = scores[:max_num], order[:max_num]
    return torch.cat((boxes[index[order]], scores[:, None]), 1), index[order]


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = 'avg',
    aligned: bool = True,
) -> Tensor:
    """Pool each RoI (image, x1, y1, x2, y2) of the input (B, C, H, W); return (N, C, *output_size)."""
    average = _choice('pool_mode', pool_mode, ('max', 'avg')) == 'avg'
    return library.roi_align(input, rois, *_pair(output_size), spatial_scale, sampling_ratio, average, aligned)[0]


def roi_pool(input: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """Return the maximum of every bin of every RoI, (N, C, *output_size)."""
    return library.roi_pool(input, rois, *_pair(output_size), spatial_scale)[0]


class _Elementwise(torch.autograd.Function):
    """Loss with a closed-form derivative, so that only its inputs are saved for backward."""

    @staticmethod
    def forward(ctx, loss, slope, x: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
        ctx.slope, ctx.options = slope, (gamma, alpha)
        ctx.save_for_backward(x, target, weight)
        return loss(x, target, weight, gamma, alpha)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        slope = ctx.slope(*ctx.saved_tensors, *ctx.options)
        grad = grad[:, None] if grad.dim() == 1 else grad
        return None, None, slope * grad, None, None, None, None


def _reduce(loss: Tensor, rows: int, reduction: str) -> Tensor:
    """Reduce the loss as mmcv does: the mean is over rows, not over elements."""
    _choice('reduction', reduction, ('none', 'mean', 'sum'))
    return loss if reduction == 'none' else loss.sum() / (rows if reduction == 'mean' else 1)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = 'mean',
) -> Tensor:
    """Return the focal loss of logits (N, classes) and labels (N,); a label outside the classes is background."""
    weight = input.new_empty(0) if weight is None else weight
    loss = _Elementwise.apply(focal.sigmoid_loss, focal.sigmoid_grad, input, target, weight, gamma, alpha)
    return _reduce(loss, len(input), reduction)


def _softmax_loss(x: Tensor, *args) -> Tensor:
    return focal.softmax_loss(x.softmax(1), *args)


def _softmax_grad(x: Tensor, *args) -> Tensor:
    return focal.softmax_grad(x.softmax(1), *args)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = 'mean',
) -> Tensor:
    """Return the focal loss of softmax logits (N, classes) and labels (N,); a label outside the classes has loss 0."""
    weight = input.new_empty(0) if weight is None else weight
    loss = _Elementwise.apply(_softmax_loss, _softmax_grad, input, target, weight, gamma, alpha)
    return _reduce(loss, len(input), reduction)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve, with each kernel tap moved by ``offset`` (B, deform_groups * taps * 2, h, w), ordered y, x per tap."""
    # As in mmcv: under autocast the offsets are half precision, and the input may be float32.
    input, weight = input.type_as(offset), weight.type_as(offset)
    sizes = (list(_pair(value)) for value in (stride, padding, dilation))
    return library.deform_conv2d(input, offset, None, weight, None, *sizes, groups, deform_groups)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve as ``deform_conv2d``, with each sample multiplied by ``mask`` (B, deform_groups * taps, h, w)."""
    input, mask, weight = (value.type_as(offset) for value in (input, mask, weight))
    bias = None if bias is None else bias.type_as(offset)
    sizes = (list(_pair(value)) for value in (stride, padding, dilation))
    return library.deform_conv2d(input, offset, mask, weight, bias, *sizes, groups, deform_groups)
