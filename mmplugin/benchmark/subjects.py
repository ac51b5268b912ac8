"""From a name on the command line to something that can be run: a backbone, a config's model, or timm's counterpart."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._inductor.config
from torch import Tensor, nn

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.sizes import macs, without_data
from mmplugin.benchmark.timm_reference import import_timm
from mmplugin.errors import UserError
from mmplugin.layers import freeze_norms

ARCHS = {f'{family}_{arch}': (cls, arch) for family, cls in FAMILIES.items() for arch in cls.ARCHS}
TIMM = {'v1': 'efficientformer_', 'v2': 'efficientformerv2_', 'evit': 'efficientvit_'}
PRECISIONS = ('bf16',)
STEPS = ('eager', 'fused', 'compiled', *PRECISIONS)
# Top-1 on ImageNet at 224 after 300 epochs, then what detectors and segmentors reached: the papers' tables.
PUBLISHED = {
    'v1_l1': {'top-1': 79.2, 'box AP': 37.9, 'mask AP': 35.4, 'mIoU': 38.9},
    'v1_l3': {'top-1': 82.4, 'box AP': 41.4, 'mask AP': 38.1, 'mIoU': 43.5},
    'v1_l7': {'top-1': 83.3, 'box AP': 42.6, 'mask AP': 39.0, 'mIoU': 45.1},
    'v2_s0': {'top-1': 75.7},
    'v2_s1': {'top-1': 79.0},
    'v2_s2': {'top-1': 81.6, 'box AP': 43.4, 'mask AP': 39.5, 'mIoU': 42.4},
    'v2_l': {'top-1': 83.3, 'box AP': 44.7, 'mask AP': 40.4, 'mIoU': 45.2},
    'evit_m0': {'top-1': 63.2},
    'evit_m1': {'top-1': 68.4},
    'evit_m2': {'top-1': 70.8},
    'evit_m3': {'top-1': 73.4},
    'evit_m4': {'top-1': 74.3, 'box AP': 32.8, 'mask AP': 31.0, 'RetinaNet AP': 32.7},
    'evit_m5': {'top-1': 77.1},
}
ACCURACIES = ('top-1', 'box AP', 'mask AP', 'RetinaNet AP', 'mIoU')


@dataclass
class Runnable:
    """A model with the two things that are measured."""

    model: nn.Module
    infer: Callable[[Tensor], object]
    loss: Callable[[Tensor], Tensor]


@dataclass
class Subject:
    """One thing to measure; ``build`` makes it anew, with random weights, for images of one size."""

    name: str
    kind: str  # backbone, detector or segmentor
    build: Callable[[int, int], Runnable]
    accuracy: str = 'top-1'  # what is drawn over latency unless the user says otherwise

    def published(self, accuracy: str | None = None) -> float | None:
        arch = short(self.name).removeprefix('timm:')
        arch = arch if arch in ARCHS else arch.partition('_')[2]
        return PUBLISHED.get(arch, {}).get(accuracy or self.accuracy)

    def macs(self, height: int, width: int) -> int | None:
        """Multiply-adds for one image. Only our backbones can be counted without running them."""
        if self.name not in ARCHS:
            return None
        # fused: the same multiply-adds, and nothing that asks a device without data for its settings
        return macs(without_data(*ARCHS[self.name]).fuse(), height, width)


def short(name: str) -> str:
    """Without folder and ``.py``, where a config's path was given."""
    return Path(name).name.removesuffix('.py')


def expand(names: Sequence[str]) -> list[str]:
    """``all``, or a family, stands for its archs."""
    found = []
    for name in names:
        same = [arch for arch in ARCHS if name in ('all', arch.partition('_')[0])]
        found += [item for item in same or [name] if item not in found]
    return found


def resolve(name: str, frozen: bool = True) -> Subject:
    """Finds what a name means.

    Args:
        name: An arch such as ``v2_s2``, ``timm:v2_s2``, or a config by path or name.
        frozen: Norms of bare backbones keep their statistics in training; configs say it themselves.
    """
    arch = name.removeprefix('timm:')
    if name in ARCHS:
        return Subject(name, 'backbone', lambda height, width: backbone(_ours(name), frozen))
    if name.startswith('timm:'):
        if arch not in ARCHS:
            raise UserError(f"timm has no counterpart of '{arch}' here; allowed after timm: are {', '.join(ARCHS)}")
        return Subject(name, 'backbone', lambda height, width: backbone(TimmDense(arch, height, width), frozen))
    return _from_config(name)


def check_timm() -> str | None:
    """Why timm cannot be used; None if it can."""
    try:
        import_timm()
    except ImportError as error:
        return f'timm cannot be imported ({error}): its columns are left out. `make setup` installs it.'
    return None


def _ours(name: str) -> nn.Module:
    cls, arch = ARCHS[name]
    return cls(arch, drop_path_rate=0.0)


def backbone(model: nn.Module, frozen: bool = False) -> Runnable:
    """The loss pulls at every feature map, so that all gradients are computed; it costs next to nothing itself."""
    if frozen:
        _stay_frozen(model)
    return Runnable(model, model, lambda x: sum(feature.float().square().mean() for feature in model(x)))


def _stay_frozen(model: nn.Module) -> None:
    train = model.train

    def train_but_norms(mode: bool = True) -> nn.Module:
        train(mode)
        freeze_norms(model)
        return model

    model.train = train_but_norms


class TimmDense(nn.Module):
    """timm's classifier without its head, giving the same feature maps as ours."""

    def __init__(self, arch: str, height: int, width: int):
        super().__init__()
        timm = import_timm()
        family, _, variant = arch.partition('_')
        # timm fixes the image size when it builds: V2 takes it as such, MSRA as one side, V1 not at all
        options = {
            'v1': dict(drop_path_rate=0.0),
            'v2': dict(drop_path_rate=0.0, img_size=(height, width)),
            'evit': dict(img_size=max(height, width)),
        }
        attention = timm.models.efficientformer.Attention
        init, grid = attention.__init__, (math.ceil(height / 32), math.ceil(width / 32))

        def with_grid(module, *args, **kwargs):
            init(module, *args, **{**kwargs, 'resolution': grid})

        attention.__init__ = with_grid
        try:
            self.model = timm.create_model(TIMM[family] + variant, num_classes=0, **options[family])
        finally:
            attention.__init__ = init
        self.indices = list(range(len(ARCHS[arch][0].STRIDES)))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)


def _from_config(name: str) -> Subject:
    from mmplugin.config_edits import is_segmentation
    from mmplugin.engine.config import load_config

    try:
        cfg = load_config(name)
    except UserError as error:
        raise UserError(f"'{name}' is no arch ({', '.join(ARCHS)}), and no config either: {error}") from error
    if 'backbone' not in cfg.model:
        raise UserError(f'{name} names no model.backbone; detectors and segmentors with a backbone can be measured')
    cfg.model.backbone.init_cfg = None  # weights change no speed
    if is_segmentation(cfg):
        return Subject(name, 'segmentor', lambda height, width: _segmentor(cfg, height, width), 'mIoU')
    accuracy = 'RetinaNet AP' if cfg.model.type == 'RetinaNet' else 'box AP'
    return Subject(name, 'detector', lambda height, width: _detector(cfg, height, width), accuracy)


def _detector(cfg, height: int, width: int) -> Runnable:
    """Prediction with everything up to the final boxes; training on eight objects an image."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    from mmplugin.engine.runner import build_model

    model = build_model(cfg)
    corners = torch.tensor([(x, y) for x in (0.02, 0.27, 0.52, 0.77) for y in (0.05, 0.55)])
    boxes = torch.cat((corners, corners + torch.tensor([0.2, 0.4])), 1) * torch.tensor([width, height] * 2)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1

    def samples(x: Tensor) -> Iterator:
        for _ in x:
            sample = DetDataSample(metainfo=_meta(height, width))
            sample.gt_instances = InstanceData(
                bboxes=boxes.to(x.device),
                labels=torch.zeros(len(boxes), dtype=torch.long, device=x.device),
                masks=BitmapMasks(masks.numpy(), height, width),
            )
            yield sample

    return _openmmlab(model, samples)


def _segmentor(cfg, height: int, width: int) -> Runnable:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    from mmplugin.engine.runner import build_model

    model = build_model(cfg)

    def samples(x: Tensor) -> Iterator:
        for _ in x:
            sample = SegDataSample(metainfo=_meta(height, width))
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, height, width, dtype=torch.long, device=x.device))
            yield sample

    return _openmmlab(model, samples)


def _meta(height: int, width: int) -> dict:
    shape = (height, width)
    return dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0), img_id=0
    )


def _openmmlab(model: nn.Module, samples: Callable[[Tensor], Iterator]) -> Runnable:
    return Runnable(
        model,
        lambda x: model(x, list(samples(x)), mode='predict'),
        lambda x: model.parse_losses(model(x, list(samples(x)), mode='loss'))[0],
    )


def variant(runnable: Runnable, mode: str) -> Callable[[Tensor], object]:
    """Changes the model for good into what ``mode`` says; gives the call to measure."""
    steps = mode.split('+')
    model = runnable.model.eval()
    core = getattr(model, 'backbone', model)
    if 'fused' in steps:
        if not hasattr(core, 'fuse'):
            raise UserError(f'{type(core).__name__} has no fuse(): measure it without the mode {mode!r}')
        core.fuse()
    if 'compiled' in steps:
        # as an option of compile() it comes too late: weights must be constants when the model is traced
        torch._inductor.config.freezing = True
        # on a CPU, Python between kernels costs small networks a fifth of their time
        torch._inductor.config.cpp_wrapper = next(model.parameters()).is_cpu
        core.compile(dynamic=False)
    if 'bf16' not in steps:
        return runnable.infer

    def in_bf16(x: Tensor) -> object:
        with torch.autocast(x.device.type, torch.bfloat16):
            return runnable.infer(x)

    return in_bf16
