"""Sigmoid and softmax focal loss, element by element, and their gradients.

Written with log-sigmoid where mmcv's kernel takes log(max(p, FLT_MIN)): the same function, without the loss of
digits near p = 1 and the cut at 87. Rows with a label outside the classes are background: every class is a negative
one (sigmoid), or the row counts nothing (softmax); their class weight is 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .weighted_sums import compute_dtype


def _class_weight(weight: Tensor, target: Tensor, classes: int) -> Tensor | None:
    if weight.numel() == 0:
        return None
    known = (target >= 0) & (target < classes)
    return torch.where(known, weight[target.clamp(0, classes - 1)], 1.0)


def _positive(logits: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(logits.shape[1], device=logits.device)


def sigmoid_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """(N, classes), in the logits' type."""
    x = logits.to(compute_dtype(logits))
    p = x.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * logsigmoid(x)
    negative = (alpha - 1) * p.pow(gamma) * logsigmoid(-x)
    loss = torch.where(_positive(x, target), positive, negative)
    scale = _class_weight(weight, target, x.shape[1])
    return (loss if scale is None else loss * scale[:, None]).to(logits.dtype)


def sigmoid_grad(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Derivative of each element of `sigmoid_loss` by its logit."""
    x = logits.to(compute_dtype(logits))
    p, q = x.sigmoid(), (-x).sigmoid()
    positive = -alpha * q.pow(gamma) * (q - gamma * p * logsigmoid(x))
    negative = (alpha - 1) * p.pow(gamma) * (gamma * q * logsigmoid(-x) - p)
    grad = torch.where(_positive(x, target), positive, negative)
    scale = _class_weight(weight, target, x.shape[1])
    return (grad if scale is None else grad * scale[:, None]).to(logits.dtype)


def _own_class(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of each row's label, and which rows have one."""
    known = (target >= 0) & (target < softmax.shape[1])
    p = softmax.to(compute_dtype(softmax)).gather(1, target.clamp(0, softmax.shape[1] - 1)[:, None])[:, 0]
    return p, known


def softmax_loss(softmax: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """(N,), from probabilities."""
    p, known = _own_class(softmax, target)
    loss = -alpha * (1 - p).pow(gamma) * p.clamp(min=torch.finfo(torch.float32).tiny).log()
    scale = _class_weight(weight, target, softmax.shape[1])
    return (torch.where(known, loss, 0.0) if scale is None else torch.where(known, loss * scale, 0.0)).to(softmax.dtype)


def softmax_grad(softmax: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Derivative of each row of `softmax_loss` by its logits, (N, classes)."""
    p, known = _own_class(softmax, target)
    log = p.clamp(min=torch.finfo(torch.float32).tiny).log()
    # (1 - p)^(gamma - 1) has no value at p = 1 for gamma < 1; the term itself goes to zero there.
    slope = torch.where(p < 1, gamma * (1 - p).pow(gamma - 1) * p * log, 0.0)
    row = alpha * (slope - (1 - p).pow(gamma))
    scale = _class_weight(weight, target, softmax.shape[1])
    row = torch.where(known, row if scale is None else row * scale, 0.0)
    return (row[:, None] * (_positive(softmax, target).to(row) - softmax)).to(softmax.dtype)
