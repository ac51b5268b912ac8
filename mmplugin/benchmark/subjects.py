"""What can be measured: bare backbones, timm's counterparts of them, and the models of configs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmplugin.benchmark.sizes import ARCHS, class_and_arch, is_arch
from mmplugin.benchmark.timm_reference import import_timm
from mmplugin.errors import UserError

TIMM = {'v1': 'efficientformer_', 'v2': 'efficientformerv2_', 'evit': 'efficientvit_'}
MODES = ('eager', 'fused', 'compiled', 'bf16')


@dataclass
class Subject:
    """A model with random weights, and the two calls that are measured: images to results, images to a scalar."""

    model: nn.Module
    infer: Callable[[Tensor], object]
    loss: Callable[[Tensor], Tensor]


def expand(names: Sequence[str]) -> list[str]:
    """Replace ``all`` and the names of families by their archs. Each name occurs once."""
    found: dict[str, None] = {}
    for name in names:
        archs = [arch for arch in ARCHS if name in ('all', arch.partition('_')[0])]
        found.update(dict.fromkeys(archs or [name]))
    return list(found)


def short_name(name: str) -> str:
    """Return a config without folder and ``.py``, a JSON file with its folder, or any other name as it is."""
    if name.endswith('.json'):
        return '/'.join(Path(name).parts[-2:])  # searches call all of theirs arch.json
    return Path(name).name.removesuffix('.py')


def kind_of(name: str) -> str:
    """Return ``backbone``, ``detector`` or ``segmentor``.

    Args:
        name: An arch such as ``v2_s2``, ``timm:v2_s2``, a JSON file with an arch, or a config by path or name.
    """
    from mmplugin.config_edits import is_segmentation

    arch = name.removeprefix('timm:')
    if arch in ARCHS or is_arch(name):
        return 'backbone'
    if name.startswith('timm:'):
        raise UserError(f"timm has no counterpart of '{arch}'; allowed after timm: are {', '.join(ARCHS)}")
    return 'segmentor' if is_segmentation(_load_config(name)) else 'detector'


def build(name: str, height: int, width: int) -> Subject:
    """Build the model that a name stands for, for images of one size."""
    kind, arch = kind_of(name), name.removeprefix('timm:')
    if kind != 'backbone':
        return from_config(_load_config(name), height, width)
    if is_arch(name):
        cls, variant = class_and_arch(name)
        return from_backbone(cls(variant, drop_path_rate=0.0))
    return from_backbone(TimmBackbone(arch, height, width))


def from_backbone(model: nn.Module) -> Subject:
    """Return the subject of a backbone. Its loss uses every feature map, so that all gradients are computed."""
    return Subject(model, model, lambda x: torch.stack([y.float().square().mean() for y in model(x)]).sum())


def from_config(cfg: Any, height: int, width: int) -> Subject:
    """Build the detector or segmentor of a config, for images of one size."""
    from mmplugin.config_edits import is_segmentation
    from mmplugin.engine.runner import build_model

    return from_model(build_model(cfg), is_segmentation(cfg), height, width)


def from_model(model: Any, segmentation: bool, height: int, width: int) -> Subject:
    """Return the subject of a segmentor or a detector, for images of one size."""
    sample: Any = (_segmentation_sample if segmentation else _detection_sample)(height, width)

    def run(x: Tensor, mode: str) -> Any:
        return model(x, [sample.to(x.device) for _ in x], mode=mode)

    return Subject(model, partial(run, mode='predict'), lambda x: model.parse_losses(run(x, 'loss'))[0])


class TimmBackbone(nn.Module):
    """timm's network without its head. It returns the same feature maps as mmplugin's backbone."""

    def __init__(self, arch: str, height: int, width: int):
        super().__init__()
        timm = import_timm()
        family, _, variant = arch.partition('_')
        # timm fixes the image size when it builds: V2 takes height and width, EfficientViT one side, V1 nothing
        options: dict[str, dict[str, Any]] = {
            'v1': dict(drop_path_rate=0.0),
            'v2': dict(drop_path_rate=0.0, img_size=(height, width)),
            'evit': dict(img_size=max(height, width)),
        }
        self.model: Any = timm.create_model(TIMM[family] + variant, num_classes=0, **options[family])
        self.indices = list(range(len(ARCHS[arch][0].STRIDES)))
        if family == 'v1':
            attention, grid = timm.models.efficientformer.Attention, (math.ceil(height / 32), math.ceil(width / 32))
            for block in self.model.modules():
                if isinstance(mixer := getattr(block, 'token_mixer', None), attention):
                    block.token_mixer = attention(mixer.qkv.in_features, resolution=grid)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps."""
        return self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)


def timm_problem() -> str | None:
    """Return why timm cannot be used, or None if it can."""
    try:
        import_timm()
    except ImportError as error:
        return f'timm cannot be imported ({error}), so its columns are omitted. `make setup` installs it.'
    return None


def _load_config(name: str) -> Any:
    from mmplugin.config_edits import refuse_classification
    from mmplugin.engine.config import load_config

    try:
        cfg = load_config(name)
    except UserError as error:
        raise UserError(f"'{name}' is neither an arch such as v2_s2, nor a JSON file, nor a config. {error}") from error
    if 'backbone' not in cfg.model:
        raise UserError(f'{name} has no model.backbone. Only detectors and segmentors with a backbone can be measured.')
    refuse_classification(cfg, 'the benchmark')
    cfg.model.backbone.init_cfg = None  # speed does not depend on the weights
    return cfg


def _detection_sample(height: int, width: int) -> Any:
    """Return ground truth with eight objects."""
    from mmdet.testing import demo_mm_inputs

    inputs = demo_mm_inputs(1, [(3, height, width)], num_items=[8], num_classes=2, with_mask=True)
    (sample,) = inputs['data_samples']
    sample.gt_instances.labels.zero_()  # a class that every head has
    sample.set_metainfo(_metainfo(height, width))
    return sample


def _segmentation_sample(height: int, width: int) -> Any:
    """Return ground truth of one class."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
    return SegDataSample(metainfo=_metainfo(height, width), gt_sem_seg=labels)


def _metainfo(height: int, width: int) -> dict[str, Any]:
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (height, width))
    return dict(shapes, scale_factor=(1.0, 1.0))


def apply_mode_(subject: Subject, mode: str) -> Callable[[Tensor], object]:
    """Change the model into what ``mode`` says and return the call to measure.

    In a detector or segmentor, ``fused`` and ``compiled`` apply to the backbone.
    """
    steps, model = mode.split('+'), subject.model.eval()
    backbone: Any = getattr(model, 'backbone', model)
    if 'fused' in steps:
        if not hasattr(backbone, 'fuse'):
            raise UserError(f'{type(backbone).__name__} has no fuse(): omit the mode {mode!r} for this model')
        backbone.fuse()
    if 'compiled' in steps:
        import torch._inductor.config as inductor  # takes a second, and only this mode needs it

        # freezing has no effect as an option of compile(): weights must be constants when the model is traced
        inductor.freezing = True
        # on a CPU, Python between kernels takes a fifth of a small network's time
        inductor.cpp_wrapper = next(model.parameters()).is_cpu
        backbone.compile(dynamic=False)
    if 'bf16' not in steps:
        return subject.infer

    def infer_in_bf16(x: Tensor) -> object:
        with torch.autocast(x.device.type, torch.bfloat16):
            return subject.infer(x)

    return infer_in_bf16
