"""The classification head of pretrained weights, for ``--verify`` and for the conversion back."""

import torch
from torch import Tensor, nn

MODULES = ('norm.', 'head.', 'head_dist.')  # prefixes of the keys


class NormLinear(nn.Module):
    """Batch norm followed by a linear layer."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.linear(self.norm(x))


class Classifier(nn.Module):
    """Classification head, from the last feature map to logits. Distilled networks average two heads.

    Args:
        family: 'v1', 'v2' or 'evit'.
        channels: Channels of the last feature map.
        classes: Number of classes.
        distilled: Whether there is a second head.
    """

    def __init__(self, family: str, channels: int, classes: int, distilled: bool):
        super().__init__()
        self.family, self.num_classes = family, classes
        if family != 'evit':
            self.norm = nn.LayerNorm(channels) if family == 'v1' else nn.BatchNorm2d(channels)
        head = NormLinear if family == 'evit' else nn.Linear
        self.head = head(channels, classes)
        self.head_dist = head(channels, classes) if distilled else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits, distilled = self.separate(x)
        return logits if distilled is None else (logits + distilled) / 2

    def separate(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of both heads."""
        if self.family == 'v1':
            x = self.norm(x.flatten(2).transpose(1, 2)).mean(1)
        elif self.family == 'v2':
            x = self.norm(x).mean((2, 3))
        else:
            x = x.mean((2, 3))
        return self.head(x), None if self.head_dist is None else self.head_dist(x)


def from_head(family: str, channels: int, head: dict[str, Tensor]) -> Classifier | None:
    """Build a classifier with the weights of ``head``. Return None if they are incomplete."""
    weight = head.get('head.linear.weight' if family == 'evit' else 'head.weight')
    if weight is None:
        return None
    distilled = any(key.startswith('head_dist.') for key in head)
    classifier = Classifier(family, channels, weight.shape[0], distilled)
    classifier.load_state_dict(head, strict=True)
    return classifier.eval()


def head_shapes(family: str, channels: int, classes: int, distilled: bool) -> dict[str, Tensor]:
    """Return the state dict of the head as meta tensors."""
    with torch.device('meta'):
        return Classifier(family, channels, classes, distilled).state_dict()
