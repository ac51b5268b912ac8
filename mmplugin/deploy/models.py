"""What is exported: the form of a trained model, its sizes, and how it is described."""

import copy
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmplugin
from mmplugin.backbones import DenseBackbone, EfficientViTMSRA
from mmplugin.backbones.efficientvit_msra import WINDOW
from mmplugin.deploy.detectors import RetinaForm, RoIForm
from mmplugin.deploy.forms import (
    SUPPORTED,
    FeatureForm,
    Form,
    SemanticForm,
    TensorForm,
    level_names,
    replace_upsampling_,
    reverses_channels,
)
from mmplugin.deploy.metadata import Metadata, sha256
from mmplugin.errors import UserError

WHATS = ('model', 'backbone', 'neck')


@dataclass(frozen=True)
class Choice:
    """What to export.

    Args:
        what: The whole model, or a part of it, one of ``WHATS``.
        input: 'image' or 'tensor'.
        size: Height and width.
        dynamic: Whether other sizes are allowed.
        score_threshold: Objects below it are not returned; None means the config's.
        max_boxes: Most objects of an image; None means the config's.
        logits: Return logits in place of a class map.
        full_masks: Return masks at the size of the original image, in place of grids over their boxes.
        resizes: Resize images in the file.
    """

    what: str = 'model'
    input: str = 'image'
    size: tuple[int, int] = (512, 512)
    dynamic: bool = False
    score_threshold: float | None = None
    max_boxes: int | None = None
    logits: bool = False
    full_masks: bool = False
    resizes: bool = False


@dataclass(frozen=True)
class Traceable:
    """A module, and what an exporter needs to know about it.

    Args:
        module: In inference mode, with all norms folded.
        inputs: Names of the inputs.
        sides: By the number of an input, its dimensions that are height and width.
        outputs: Names of the results.
        metadata: What the file says about itself.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    sides: dict[int, tuple[int, int]]
    outputs: tuple[str, ...]
    metadata: Metadata

    def random_inputs(self, height: int, width: int) -> list[Tensor]:
        """Return inputs of another size."""
        if self.metadata.input == 'tensor':
            return [torch.randn(1, 3, height, width)]
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        return [image, torch.tensor([height, width]), torch.tensor([height, width])]


def least_sides(backbone: Any, dynamic: bool) -> tuple[int, int]:
    """Return the least short and the least long side of an image."""
    least = getattr(backbone, 'MIN_SIZE', 1)
    if not dynamic or not isinstance(backbone, EfficientViTMSRA):
        return least, least
    # A dynamic file always has windows. A coarsest map that fits into one window would need another computation.
    return least, WINDOW * backbone.STRIDES[backbone.num_stages - 1] + 1


def other_sizes(size: Sequence[int], least: Sequence[int], dynamic: bool) -> list[tuple[int, int]]:
    """Return three sizes to compare at besides the traced one, the first of them odd.

    A file of a fixed size gets images that leave some of it empty.
    """
    height, width = size
    if not dynamic:
        found = [(height * 3 // 4 | 1, width * 7 // 8 | 1), (height, width * 2 // 3), (height // 2, width)]
        return [(max(least[0], min(h, height)), max(least[0], min(w, width))) for h, w in found]
    found = [(height * 3 // 4 | 1, width * 5 // 4 | 1), (height * 5 // 4, width), (height, width * 3 // 2)]
    found = [(max(least[0], h), max(least[0], w)) for h, w in found]
    return [(h, w) if max(h, w) >= least[1] else (h, least[1] | 1) for h, w in found]


def fused_(model: Any) -> Any:
    """Fold all norms of a model into its convolutions, for inference only, and return it."""
    from mmcv.cnn.utils import fuse_conv_bn

    backbone = getattr(model, 'backbone', model)
    if isinstance(backbone, DenseBackbone):
        backbone.fuse()
    for name, part in model.named_children():
        if name != 'backbone':
            fuse_conv_bn(part)
    replace_upsampling_(model)
    return model.eval().requires_grad_(False)


def form_of(model: Any, classes: Sequence[str], choice: Choice) -> Form:
    """Return the form of a detector or a segmentor."""
    limits = choice.score_threshold, choice.max_boxes
    if hasattr(model, 'decode_head'):
        if limits != (None, None):
            raise UserError('--score-thr and --max-boxes are for detectors; omit them')
        return SemanticForm(model, classes, choice.logits)
    if choice.logits:
        raise UserError('--logits is for segmentation; omit it')
    if choice.full_masks and not getattr(model, 'with_mask', False):
        raise UserError('--masks is for models with masks; omit it')
    if hasattr(model, 'rpn_head') and getattr(model, 'with_roi_head', False):
        return RoIForm(model, classes, *limits, choice.full_masks)
    if hasattr(model, 'bbox_head'):
        return RetinaForm(model, classes, *limits)
    raise UserError(
        f'{type(model).__name__} has no form for export; supported: {SUPPORTED}. Use --what backbone or --what neck'
    )


def traceable(
    model: Any, classes: Sequence[str], choice: Choice, name: str, checkpoint: str | Path, resize: dict[str, Any]
) -> Traceable:
    """Return what an exporter needs, from a trained model, which stays as it is.

    Args:
        model: A detector or a segmentor of mmdet or mmseg.
        classes: Names of its classes.
        choice: What to export.
        name: Name of the config.
        checkpoint: File of the weights, for its hash.
        resize: How images of a dynamic file are resized.
    """
    original, model = model, fused_(copy.deepcopy(model))
    height, width = choice.size
    least = least_sides(model.backbone, choice.dynamic)
    if min(choice.size) < least[0] or max(choice.size) < least[1]:
        raise UserError(
            f'--size {height}x{width}: this {"dynamic file" if choice.dynamic else "model"} takes images whose short '
            f'side is {least[0]} or more, and whose long side is {least[1]} or more. Choose a larger size'
            + (', or omit --dynamic' if choice.dynamic else '')
        )
    preprocessor = original.data_preprocessor
    common: dict[str, Any] = dict(
        name=name,
        size=choice.size,
        dynamic=choice.dynamic,
        min_size=least,
        resize=resize if choice.dynamic else _fit(choice.size, resize),
        mean=tuple(preprocessor.mean.flatten().tolist()),
        std=tuple(preprocessor.std.flatten().tolist()),
        tensor_channels='RGB' if reverses_channels(preprocessor) else 'BGR',
        backbone=dict(type=type(model.backbone).__name__, arch=getattr(model.backbone, 'arch', None)),
        checkpoint_sha256=sha256(checkpoint),
        versions=dict(mmplugin=mmplugin.__version__, torch=torch.__version__, python=platform.python_version()),
    )
    if choice.what != 'model':
        return _features(model, choice, common)
    form: Any = form_of(model, classes, choice)
    metadata = Metadata(
        kind=form.kind,
        input=choice.input,
        classes=tuple(classes),
        palette=_palette(original, len(classes)),
        score_threshold=form.score_threshold,
        max_boxes=form.max_boxes,
        mask_threshold=form.mask_threshold,
        resizes=choice.resizes,
        full_masks=choice.full_masks,
        logits=choice.logits,
        **common,
    )
    if choice.input == 'tensor':
        _require_divisible(choice.size, form.images.divisor)
        return Traceable(TensorForm(form).eval(), ('tensor',), {0: (2, 3)}, form.outputs, metadata)
    return Traceable(form.eval(), ('image', 'valid', 'original'), {0: (0, 1)}, form.outputs, metadata)


def _fit(size: Sequence[int], resize: dict[str, Any]) -> dict[str, Any]:
    """Return how images are resized for a file of a fixed size."""
    multiple = resize.get('multiple', 1)
    if any(side % multiple for side in size):
        raise UserError(
            f'--size {size[0]}x{size[1]}: both sides must be multiples of {multiple}, because the test pipeline of the '
            'config resizes images to such sizes'
        )
    return dict(fit=list(size)) | (dict(multiple=multiple) if multiple > 1 else {})


def _features(model: Any, choice: Choice, common: dict[str, Any]) -> Traceable:
    """Return a backbone, with or without its neck."""
    if choice.what == 'neck' and not getattr(model, 'with_neck', False):
        raise UserError('--what neck: this model has no neck; use --what backbone')
    module = FeatureForm(model.backbone, model.neck if choice.what == 'neck' else None).eval()
    metadata = Metadata(kind='features', input='tensor', **common)
    return Traceable(module, ('tensor',), {0: (2, 3)}, level_names(module), metadata)


def _require_divisible(size: Sequence[int], divisor: int) -> None:
    if any(side % divisor for side in size):
        raise UserError(
            f'--size {size[0]}x{size[1]} with --input tensor: both sides must be multiples of {divisor}, because '
            'padding belongs to the file only with --input image'
        )


def _palette(model: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    from mmplugin.palette import palette

    return tuple((int(r), int(g), int(b)) for r, g, b in palette(count))
