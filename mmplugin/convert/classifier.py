"""The classification head that comes with pretrained weights: kept for the way back and for a look at predictions."""

import torch
from torch import Tensor, nn

MODULES = ('norm.', 'head.', 'head_dist.')  # everything whose name starts so belongs to the head


class NormLinear(nn.Module):
    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Classifier(nn.Module):
    """From the last feature map to logits; two heads, where a network was distilled, are averaged.

    Args:
        family: 'v1', 'v2' or 'evit'.
        channels: Channels of the last feature map.
        classes: Number of classes.
        distilled: Whether there is a second head.
    """

    def __init__(self, family: str, channels: int, classes: int, distilled: bool):
        super().__init__()
        self.family = family
        if family != 'evit':
            self.norm = nn.LayerNorm(channels) if family == 'v1' else nn.BatchNorm2d(channels)
        head = NormLinear if family == 'evit' else nn.Linear
        self.head = head(channels, classes)
        self.head_dist = head(channels, classes) if distilled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.family == 'v1':
            x = self.norm(x.flatten(2).transpose(1, 2)).mean(1)
        elif self.family == 'v2':
            x = self.norm(x).mean((2, 3))
        else:
            x = x.mean((2, 3))
        return self.head(x) if self.head_dist is None else (self.head(x) + self.head_dist(x)) / 2


def from_head(family: str, channels: int, head: dict[str, Tensor]) -> Classifier | None:
    """A classifier with the weights of ``head``, or None where those do not make one."""
    weight = head.get('head.linear.weight' if family == 'evit' else 'head.weight')
    if weight is None:
        return None
    distilled = any(key.startswith('head_dist.') for key in head)
    classifier = Classifier(family, channels, weight.shape[0], distilled)
    classifier.load_state_dict(head, strict=True)
    return classifier.eval()


def head_shapes(family: str, channels: int, classes: int, distilled: bool) -> dict[str, Tensor]:
    """The head's tensors, without values."""
    with torch.device('meta'):
        return Classifier(family, channels, classes, distilled).state_dict()
