"""The teacher of a distillation: any network of timm or mmpretrain."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmplugin.convert import checkpoint_io
from mmplugin.convert.sources import unwrap
from mmplugin.engine.weights import load_exactly
from mmplugin.errors import UserError

KEYS = 'timm=NAME, with checkpoint=FILE for weights of your own, or the model of a config of mmpretrain (type=...)'


class Teacher:
    """A frozen network in eval mode that gets the images of the student, normalized as it expects.

    It is no module, so the student neither saves nor averages nor trains it, and copies of the student share it.

    Args:
        settings: ``dict(timm='regnety_160.deit_in1k')``, optionally with ``checkpoint``, or the model of a config of
            mmpretrain, whose weights are those of its ``init_cfg``.
        mean: (3, 1, 1), by which the student's RGB images are normalized.
        std: (3, 1, 1), likewise.
        num_classes: Number of classes of the student.
    """

    def __init__(self, settings: Mapping[str, Any], mean: Tensor, std: Tensor, num_classes: int):
        self.settings = copy.deepcopy(dict(settings))
        if ('timm' in self.settings) == ('type' in self.settings):
            raise UserError(f'model.teacher has the keys {", ".join(self.settings)}; allowed: {KEYS}')
        self.student_mean, self.student_std, self.num_classes = mean, std, num_classes
        self.network: nn.Module | None = None

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        """Return the teacher itself: the average of the student's weights needs no second one."""
        return self

    def build(self) -> nn.Module:
        """Build the network once, and return it."""
        if self.network is None:
            network, mean, std, self.bgr = self._timm() if 'timm' in self.settings else self._mmpretrain()
            self.mean, self.std = torch.as_tensor(mean).view(3, 1, 1), torch.as_tensor(std).view(3, 1, 1)
            self.network = network.requires_grad_(False).eval()
        return self.network

    def _timm(self) -> tuple[nn.Module, Any, Any, bool]:
        try:
            import timm
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f'the teacher {self.settings["timm"]} requires timm and a torchvision that fits torch ({error}): pip '
                'install timm torchvision. Or train without a teacher: --cfg-options model.teacher=None '
                'model.head.distilled=False'
            ) from error
        name, checkpoint = self.settings['timm'], self.settings.get('checkpoint')
        pretrained = self.settings.get('pretrained', checkpoint is None)
        try:
            network = timm.create_model(name, pretrained=pretrained, num_classes=self.num_classes)
        except Exception as error:  # timm and its hub client raise many kinds
            raise UserError(f'the teacher {name} cannot be built or downloaded: {error}') from error
        if checkpoint is not None:
            content = checkpoint_io.read(checkpoint)
            try:
                weights = unwrap(content).weights
            except UserError as error:
                raise UserError(f'the teacher {checkpoint}: {error}') from error
            load_exactly(network, weights, checkpoint)
        cfg: Any = network.pretrained_cfg
        return network, [255 * value for value in cfg['mean']], [255 * value for value in cfg['std']], False

    def _mmpretrain(self) -> tuple[nn.Module, Any, Any, bool]:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            network = MODELS.build(self.settings)
        network.init_weights()
        images = network.data_preprocessor
        if not images._enable_normalize:
            return network, torch.zeros(3), torch.ones(3), not images.to_rgb
        mean, std = images.mean, images.std  # in the order of the channels that the network gets
        return (network, mean, std, False) if images.to_rgb else (network, mean.flip(0), std.flip(0), True)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores (N, classes) of a batch.

        Args:
            images: (N, 3, H, W), as the student gets them.
        """
        network = self.build().to(images.device)
        pixels = images * self.student_std.to(images) + self.student_mean.to(images)
        own = (pixels - self.mean.to(images)) / self.std.to(images)
        scores = network(own.flip(1) if self.bgr else own)
        if scores.dim() != 2 or scores.shape[1] != self.num_classes:
            raise UserError(
                f'the teacher predicts {tuple(scores.shape[1:])} scores, but there are {self.num_classes} classes; use '
                'a teacher of these classes, or none: --cfg-options model.teacher=None model.head.distilled=False'
            )
        return scores
