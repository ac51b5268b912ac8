"""RetinaNet, Mask R-CNN and Semantic FPN as modules that torch.export can trace: images in, final results out.

mmdet and mmseg decide in Python how many boxes there are and how large maps are. Here the same decisions are tensor
operations in the same order, so that results are equal. A form shares its layers with the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmplugin.errors import UserError
from mmplugin.layers import ceil_div

SUPPORTED = 'RetinaNet, Mask R-CNN or Faster R-CNN with one stage of RoI heads, Semantic FPN'


def reverses_channels(preprocessor: Any) -> bool:
    """Return whether a data preprocessor changes BGR to RGB; stock mmseg has an attribute of its own for it."""
    names = '_channel_conversion', 'channel_conversion'
    return bool(next(getattr(preprocessor, name) for name in names if hasattr(preprocessor, name)))


class Images(nn.Module):
    """What the data preprocessor of a model does with one image, and padding."""

    def __init__(self, preprocessor: Any):
        super().__init__()
        self.reverse = reverses_channels(preprocessor)
        self.divisor = int((getattr(preprocessor, 'test_cfg', None) or {}).get('size_divisor') or 1)
        self.divisor = max(self.divisor, getattr(preprocessor, 'pad_size_divisor', 1))
        padding = getattr(preprocessor, 'pad_val', getattr(preprocessor, 'pad_value', 0))
        if padding != 0 or not preprocessor._enable_normalize:
            raise UserError('data_preprocessor: only normalization, and padding with 0, can be exported')
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', preprocessor.mean.clone().view(-1, 1, 1), persistent=False)
        self.register_buffer('std', preprocessor.std.clone().view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor, valid: Tensor) -> Tensor:
        """Map uint8 (H, W, 3) to float32 (1, 3, H', W'), zero beyond ``valid``, with sides that the model takes."""
        height, width = image.shape[:2]
        x = image.permute(2, 0, 1).float().contiguous()  # in PyTorch, convolutions read the layout of their input
        x = ((x.flip(0) if self.reverse else x) - self.mean) / self.std
        inside = (torch.arange(height) < valid[0])[:, None] & (torch.arange(width) < valid[1])
        x = torch.where(inside, x, torch.zeros(()))
        below, right = (ceil_div(side, self.divisor) * self.divisor - side for side in (height, width))
        return F.pad(x[None], (0, right, 0, below))


class Form(nn.Module):
    """A model for one image.

    Args:
        model: A detector or a segmentor of mmdet or mmseg, in inference mode.
        classes: Names of the classes.
    """

    kind: str
    outputs: tuple[str, ...]
    score_threshold: float | None = None
    max_boxes: int | None = None
    mask_threshold: float | None = None

    def __init__(self, model: Any, classes: Sequence[str]):
        super().__init__()
        self.images = Images(model.data_preprocessor)
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else None
        self.classes = tuple(classes)

    def forward(self, image: Tensor, valid: Tensor, original: Tensor) -> tuple[Tensor, ...]:
        """Return the ``outputs`` for an image as ``mmplugin.deploy.metadata`` describes it."""
        return self.predict(self.images(image, valid), valid, original)

    def predict(self, x: Tensor, valid: Tensor, original: Tensor) -> tuple[Tensor, ...]:
        """Return the ``outputs`` for a normalized and padded image (1, 3, H, W)."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """Return the feature maps of the neck, or of the backbone if there is no neck."""
        maps = self.backbone(x)
        return maps if self.neck is None else self.neck(maps)


class TensorForm(nn.Module):
    """A form that takes a normalized tensor and returns results in its pixels."""

    def __init__(self, form: Form):
        super().__init__()
        self.form = form

    def forward(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Take (1, 3, H, W)."""
        if isinstance(self.form, SemanticForm):  # without sizes that are data, which few runtimes can resize to
            return self.form.answer(self.form.logits_of(tensor)[0])
        size = torch.scalar_tensor(0, dtype=torch.int64) + torch.tensor(tensor.shape[-2:])
        return self.form.predict(tensor, size, size)


class FeatureForm(nn.Module):
    """A backbone with or without a neck."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None):
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Take (1, 3, H, W)."""
        maps = self.backbone(tensor)
        return tuple(maps if self.neck is None else self.neck(maps))


@torch.no_grad()
def level_names(form: FeatureForm, side: int = 512) -> tuple[str, ...]:
    """Return the names of the maps: 'stride8', 'stride16', ...

    Args:
        form: Backbone with or without a neck.
        side: Side of an image, a multiple of all strides: on a small image, two of the last maps have one cell.
    """
    levels = form(torch.zeros(1, 3, side, side))
    return tuple(f'stride{round(side / level.shape[2])}' for level in levels)


class SemanticForm(Form):
    """Semantic FPN: a class for each pixel of the original image."""

    kind = 'classes'

    def __init__(self, model: Any, classes: Sequence[str], logits: bool):
        super().__init__(model, classes)
        head = model.decode_head
        if type(head).__name__ != 'FPNHead' or model.test_cfg.get('mode') != 'whole':
            raise UserError(
                f'the decode head {type(head).__name__} in the test mode {model.test_cfg.get("mode")!r} has no form '
                f'for export; supported: {SUPPORTED}, on whole images. Use --what backbone or --what neck'
            )
        self.head, self.logits = head, logits
        self.outputs = ('logits',) if logits else ('classes',)
        self.align_corners = head.align_corners

    def predict(self, x: Tensor, valid: Tensor, original: Tensor) -> tuple[Tensor, ...]:
        """Return the class map or the logits at the size ``original``."""
        logits = self.logits_of(x)
        # integers; while tracing, symbolic ones, which int() would turn into constants
        sides: list[Any] = [side.item() for side in (*valid.unbind(), *original.unbind())]
        height, width, *size = sides
        for side, most in ((height, x.shape[2]), (width, x.shape[3])):
            torch._check(side >= 1)
            torch._check(side <= most)
        for side in size:
            torch._check(side >= 1)
        logits = logits.narrow(2, 0, height).narrow(3, 0, width)  # padding takes no part in the second resizing
        return self.answer(self._resize(logits, size)[0])

    def logits_of(self, x: Tensor) -> Tensor:
        """Return the logits (1, classes, H, W) at the size of a normalized image."""
        return self._resize(self.head(self.features(x)), x.shape[-2:])

    def answer(self, logits: Tensor) -> tuple[Tensor]:
        """Return the logits (classes, H, W), or the class of each pixel."""
        if self.logits:
            return (logits,)
        return (logits.argmax(0).to(torch.uint8 if len(self.classes) <= 256 else torch.int32),)

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size, mode='bilinear', align_corners=self.align_corners)


class ScaleBy(nn.Module):
    """mmseg's ``Upsample``, which computes a size from Python floats: that would tie a file to one image size."""

    def __init__(self, upsample: Any):
        super().__init__()
        self.factor, self.mode, self.align_corners = upsample.scale_factor, upsample.mode, upsample.align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Resize by the factor."""
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=self.align_corners)


def replace_upsampling_(module: nn.Module) -> None:
    """Replace every ``Upsample`` of mmseg with a whole factor by ``ScaleBy``."""
    child: Any
    for name, child in module.named_children():
        if type(child).__name__ == 'Upsample' and not getattr(child, 'size', 1) and child.scale_factor % 1 == 0:
            setattr(module, name, ScaleBy(child))
        else:
            replace_upsampling_(child)
