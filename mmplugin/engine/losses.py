"""BalancedCrossEntropy: cross entropy with class weights, normalized by them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BalancedCrossEntropy(nn.Module):
    """Cross entropy with class weights, averaged over the weights of all valid pixels.

    Stock mmseg's own weighted cross entropy fails at the first ignored pixel.

    Args:
        class_weight: One weight per class.
    """

    loss_name = 'loss_ce'
    class_weight: Tensor

    def __init__(self, class_weight: Sequence[float]):
        super().__init__()
        self.register_buffer('class_weight', torch.tensor(class_weight), persistent=False)

    def forward(self, pred: Tensor, label: Tensor, weight: None = None, ignore_index: int = 255) -> Tensor:
        """Return the loss of (N, C, H, W) scores and (N, H, W) labels."""
        weights = self.class_weight.to(pred.dtype)
        total = weights[label[label != ignore_index]].sum()
        return F.cross_entropy(pred, label, weights, ignore_index=ignore_index, reduction='sum') / total.clamp(min=1)
