"""A classifier around a backbone of mmplugin, with hard distillation (Touvron et al., DeiT, 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmplugin.backbones import FAMILIES
from mmplugin.classification.framework import import_mmpretrain
from mmplugin.classification.teacher import Teacher
from mmplugin.convert.classifier import Classifier
from mmplugin.errors import UserError

import_mmpretrain()

from mmpretrain.models.classifiers import ImageClassifier  # noqa: E402
from mmpretrain.models.heads import ClsHead  # noqa: E402
from mmpretrain.structures import DataSample  # noqa: E402

NAMES = {cls.__name__: family for family, cls in FAMILIES.items()}


class PretrainingHead(ClsHead):
    """Linear classifier on the last feature map, or two of them, one of which learns from a teacher.

    Args:
        family: 'v1', 'v2' or 'evit'.
        channels: Channels of the last feature map.
        num_classes: Number of classes.
        distilled: Whether there is a second classifier. Predictions average both.
        label_smoothing: Share of each target that is distributed over all classes.
        distillation_share: Share of the loss that comes from the teacher.
    """

    def __init__(
        self,
        family: str,
        channels: int,
        num_classes: int,
        distilled: bool = False,
        label_smoothing: float = 0.0,
        distillation_share: float = 0.5,
    ):
        super().__init__()
        self.num_classes, self.label_smoothing, self.distillation_share = (
            num_classes,
            label_smoothing,
            distillation_share,
        )
        self.classifier = Classifier(family, channels, num_classes, distilled)
        for module in self.classifier.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the scores (N, classes)."""
        return self.classifier(feats[-1])

    def loss(
        self, feats: Sequence[Tensor], data_samples: Sequence[DataSample], teacher_scores: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss, in two parts if there is a teacher.

        Args:
            feats: Feature maps of the backbone.
            data_samples: Ground truth: ``gt_score`` after mixing images, else ``gt_label``.
            teacher_scores: (N, classes).
        """
        scores, distilled = self.classifier.separate(feats[-1])
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])
        loss = F.cross_entropy(scores, target, label_smoothing=self.label_smoothing)
        if teacher_scores is None or distilled is None:
            return dict(loss_class=loss)
        # The teacher's class is the target, without smoothing.
        from_teacher = F.cross_entropy(distilled, teacher_scores.argmax(dim=1))
        share = self.distillation_share
        return dict(loss_class=(1 - share) * loss, loss_teacher=share * from_teacher)


class PretrainingClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with a backbone of mmplugin, a head that follows it, and an optional teacher.

    mmpretrain has a backbone ``EfficientFormer``, too. Here the name means that of mmplugin.

    Args:
        backbone: Config of a backbone of mmplugin.
        head: Arguments of ``PretrainingHead`` except ``family`` and ``channels``.
        teacher: Arguments of ``Teacher``; requires ``head.distilled``.
        **settings: Arguments of ``ImageClassifier``.
    """

    def __init__(self, backbone: dict, head: dict, teacher: dict | None = None, **settings: Any):
        family = NAMES.get(backbone['type'])
        if family is None:
            raise UserError(
                f'backbone.type is {backbone["type"]}; allowed in {type(self).__name__}: {", ".join(NAMES)}'
            )
        arguments = {key: value for key, value in backbone.items() if key != 'type'}
        body: Any = FAMILIES[family](**arguments)
        if body.num_stages < len(body.STRIDES):
            raise UserError(f'backbone.out_indices is {body.out_indices}; a classifier needs the last stage')
        classifier = PretrainingHead(family, body.settings['widths'][-1], **head)
        super().__init__(backbone=body, head=classifier, **settings)
        self.teacher: Teacher | None = None
        if teacher is not None:
            if classifier.classifier.head_dist is None:
                raise UserError('model.teacher requires a second classifier: set model.head.distilled=True')
            images = self.data_preprocessor
            self.teacher = Teacher(teacher, images.mean, images.std, classifier.num_classes)

    def init_weights(self) -> None:
        """Initialize the weights, and load the teacher, before any data is read."""
        super().init_weights()
        if self.teacher is not None:
            self.teacher.build()

    def loss(self, inputs: Tensor, data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        scores = None if self.teacher is None else self.teacher(inputs)
        if scores is None and self.head.classifier.head_dist is not None:
            raise UserError(
                'the second classifier has no teacher to learn from; set model.teacher, or model.head.distilled=False'
            )
        return self.head.loss(self.extract_feat(inputs), data_samples, teacher_scores=scores)
