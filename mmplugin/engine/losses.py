"""BalancedCrossEntropy: classes that cover few pixels count as much as the others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BalancedCrossEntropy(nn.Module):
    """Cross entropy with a weight for each class. On the stock stack mmseg's own stops at the first ignored pixel.

    Args:
        class_weight: One for each class; the mean over the pixels is weighted by them.
    """

    loss_name = 'loss_ce'

    def __init__(self, class_weight: Sequence[float]):
        super().__init__()
        self.register_buffer('class_weight', torch.tensor(class_weight), persistent=False)

    def forward(self, pred: Tensor, label: Tensor, weight: None = None, ignore_index: int = 255) -> Tensor:
        weights = self.class_weight.to(pred.dtype)
        total = weights[label[label != ignore_index]].sum()
        return F.cross_entropy(pred, label, weights, ignore_index=ignore_index, reduction='sum') / total.clamp(min=1)
