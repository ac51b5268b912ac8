"""Hard distillation: the loss, the teacher, and both heads."""

import copy
import math

import pytest
import torch

pytest.importorskip('mmpretrain.version', reason="requires mmpretrain: pip install 'mmplugin[classification]'")

from mmplugin.backbones import FAMILIES
from mmplugin.classification.framework import import_mmpretrain
from mmplugin.classification.model import PretrainingClassifier, PretrainingHead
from mmplugin.classification.teacher import Teacher
from mmplugin.convert import convert
from mmplugin.errors import UserError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def classifier(teacher: dict | None, classes: int = 3, arch='s0', **head) -> PretrainingClassifier:
    return PretrainingClassifier(
        backbone=dict(type='EfficientFormerV2', arch=arch),
        head=dict(num_classes=classes, distilled=teacher is not None, **head),
        teacher=teacher,
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=MEAN, std=STD, to_rgb=True),
    )


def samples(*labels: int) -> list:
    structures = import_mmpretrain('mmpretrain.structures')
    return [structures.DataSample().set_gt_label(label) for label in labels]


def test_the_loss_equals_a_case_worked_by_hand(monkeypatch):
    """One image with class 0 of 2. Student: logits (ln 3, 0); second head: (0, ln 4). The teacher says class 1."""
    head = PretrainingHead('v2', 4, 2, distilled=True, label_smoothing=0.2)
    logits = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, math.log(4)]])
    monkeypatch.setattr(head.classifier, 'separate', lambda _: logits)
    losses = head.loss([torch.zeros(1)], samples(0), teacher_scores=torch.tensor([[0.1, 0.7]]))
    # Probabilities (3/4, 1/4), targets (0.9, 0.1) after smoothing; second head (1/5, 4/5), target class 1.
    expected = 0.5 * -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4)), 0.5 * -math.log(4 / 5)
    assert losses['loss_class'].item() == pytest.approx(expected[0], abs=1e-6)
    assert losses['loss_teacher'].item() == pytest.approx(expected[1], abs=1e-6)


@pytest.fixture
def mmpretrain_teacher() -> dict:
    import_mmpretrain()
    return dict(
        type='ImageClassifier',
        backbone=dict(type='MobileNetV2', widen_factor=0.1),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=1280),
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=False),
    )


def test_the_teacher_gets_no_gradient_and_stays_in_eval_mode(mmpretrain_teacher):
    model = classifier(mmpretrain_teacher)
    model.train()
    network = model.teacher.build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = model.loss(torch.randn(2, 3, 64, 64), samples(0, 2))
    sum(losses.values()).backward()
    assert not any(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any('teacher' in name for name in [*model.state_dict(), *dict(model.named_modules())])
    assert copy.deepcopy(model).teacher is model.teacher


def test_the_teacher_sees_pixels_in_its_own_normalization_and_channel_order(mmpretrain_teacher):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    teacher = Teacher(mmpretrain_teacher, mean, std, 3)
    network = teacher.build()
    rgb = torch.randint(0, 256, (2, 3, 64, 64)).float()
    own = (rgb.flip(1) - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)
    torch.testing.assert_close(teacher((rgb - mean) / std), network(own), atol=1e-4, rtol=1e-4)


def test_a_network_of_timm_teaches_with_its_normalization(timm):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    settings = dict(timm='mixer_s32_224', pretrained=False)  # normalizes by 0.5
    teacher = Teacher(settings, mean, std, 3)
    rgb = torch.rand(1, 3, 224, 224)
    expected = teacher.build()((rgb - 0.5) / 0.5)
    torch.testing.assert_close(teacher((255 * rgb - mean) / std), expected, atol=1e-4, rtol=1e-4)


def test_wrong_teachers_are_refused(mmpretrain_teacher):
    with pytest.raises(UserError, match='allowed: timm=NAME'):
        classifier(dict(name='x'))
    with pytest.raises(UserError, match=r'predicts \(3,\) scores, but there are 4 classes'):
        classifier(mmpretrain_teacher, classes=4).loss(torch.randn(2, 3, 64, 64), samples(0, 2))
    model = classifier(mmpretrain_teacher)
    model.teacher = None
    with pytest.raises(UserError, match='no teacher to learn from'):
        model.loss(torch.randn(2, 3, 64, 64), samples(0, 2))


@pytest.mark.parametrize(
    ('family', 'arch', 'name'),
    [('v1', 'l1', 'efficientformer_l1'), ('v2', 's0', 'efficientformerv2_s0'), ('evit', 'm0', 'efficientvit_m0')],
)
def test_predictions_average_two_heads_as_timm_does(timm, family, arch, name):
    options = dict(distillation=True) if family == 'v2' else {}  # v1 always has two heads
    reference = timm.create_model(name, num_classes=3, **options).eval()
    for module in reference.modules():  # values that a wrong order of norm, mean and heads would not reproduce
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    result = convert(reference.state_dict())
    model = PretrainingClassifier(
        backbone=dict(type=FAMILIES[family].__name__, arch=arch),
        head=dict(num_classes=3, distilled=family != 'evit'),
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=MEAN, std=STD, to_rgb=True),
    ).eval()
    model.backbone.load_state_dict(result.state_dict, strict=True)
    model.head.classifier.load_state_dict(result.head, strict=True)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(image), reference(image), atol=1e-4, rtol=1e-4)
