"""Sigmoid and softmax focal loss, element by element, and their gradients.

The sigmoid loss uses ``logsigmoid`` instead of the ``log(max(p, FLT_MIN))`` of mmcv's kernel: the same function, but
exact near p = 1 and not clipped at 87. A label outside the classes means background: all classes are negative
(sigmoid), or the loss is 0 (softmax), and the class weight is 1.
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
    """Return the loss of each element, (N, classes), in the dtype of the logits."""
    x = logits.to(compute_dtype(logits))
    p = x.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * logsigmoid(x)
    negative = (alpha - 1) * p.pow(gamma) * logsigmoid(-x)
    loss = torch.where(_positive(x, target), positive, negative)
    scale = _class_weight(weight, target, x.shape[1])
    return (loss if scale is None else loss * scale[:, None]).to(logits.dtype)


def sigmoid_grad(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the derivative of each element of ``sigmoid_loss`` by its logit."""
    x = logits.to(compute_dtype(logits))
    p, q = x.sigmoid(), (-x).sigmoid()
    positive = -alpha * q.pow(gamma) * (q - gamma * p * logsigmoid(x))
    negative = (alpha - 1) * p.pow(gamma) * (gamma * q * logsigmoid(-x) - p)
    grad = torch.where(_positive(x, target), positive, negative)
    scale = _class_weight(weight, target, x.shape[1])
    return (grad if scale is None else grad * scale[:, None]).to(logits.dtype)


def _label_probability(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each row's label, and which rows have a label that is a class."""
    known = (target >= 0) & (target < softmax.shape[1])
    p = softmax.to(compute_dtype(softmax)).gather(1, target.clamp(0, softmax.shape[1] - 1)[:, None])[:, 0]
    return p, known


def softmax_loss(softmax: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the loss of each row, (N,), from probabilities (N, classes)."""
    p, known = _label_probability(softmax, target)
    loss = -alpha * (1 - p).pow(gamma) * p.clamp(min=torch.finfo(torch.float32).tiny).log()
    scale = _class_weight(weight, target, softmax.shape[1])
    return (torch.where(known, loss, 0.0) if scale is None else torch.where(known, loss * scale, 0.0)).to(softmax.dtype)


def softmax_grad(softmax: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the derivative of each row of ``softmax_loss`` by its logits, (N, classes)."""
    p, known = _label_probability(softmax, target)
    log = p.clamp(min=torch.finfo(torch.float32).tiny).log()
    # At p = 1 and gamma < 1 the power is infinite, but the limit of the product is 0.
    slope = torch.where(p < 1, gamma * (1 - p).pow(gamma - 1) * p * log, 0.0)
    row = alpha * (slope - (1 - p).pow(gamma))
    scale = _class_weight(weight, target, softmax.shape[1])
    row = torch.where(known, row if scale is None else row * scale, 0.0)
    return (row[:, None] * (_positive(softmax, target).to(row) - softmax)).to(softmax.dtype)
