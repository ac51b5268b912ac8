"""The recipes of the papers, typed independently of the configs, and the parts that timm's training has."""

from types import SimpleNamespace

import pytest
import torch

from mmplugin.backbones import FAMILIES
from mmplugin.classification.hooks import WeightAverageHook, adaptive_clip_
from mmplugin.data.seeded_sampler import SeededSampler
from mmplugin.engine.config import load_config
from mmplugin.paths import configs_root

NAMES = [f'{family}_{arch}_imagenet' for family, cls in FAMILIES.items() for arch in cls.ARCHS]
TOP1 = {  # the papers' tables, 300 epochs
    'v1_l1': 79.2, 'v1_l3': 82.4, 'v1_l7': 83.3, 'v2_s0': 75.7, 'v2_s1': 79.0, 'v2_s2': 81.6, 'v2_l': 83.3,
    'evit_m0': 63.2, 'evit_m1': 68.4, 'evit_m2': 70.8, 'evit_m3': 73.4, 'evit_m4': 74.3, 'evit_m5': 77.1,
}  # fmt: skip
PROCESSES = 8  # of the papers' 8 to 16 GPUs


def steps(cfg, loader: str) -> dict:
    return {step.type: step for step in cfg[loader].dataset.pipeline}


@pytest.mark.parametrize('name', NAMES)
def test_every_config_has_the_schedule_of_its_paper(name):
    cfg = load_config(name)
    family, arch, _ = name.split('_')
    first_line = (configs_root() / 'classification' / f'{name}.py').read_text().splitlines()[0]
    assert f'top-1 {TOP1[f"{family}_{arch}"]} %' in first_line
    assert (cfg.model.backbone.type, cfg.model.backbone.arch) == (FAMILIES[family].__name__, arch)
    assert cfg.train_cfg.max_epochs == 300
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 0.025)
    batch = cfg.train_dataloader.batch_size * PROCESSES
    assert batch == cfg.auto_scale_lr.base_batch_size == (2048 if family == 'evit' else 1024)
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.by_epoch) == ('LinearLR', 5, True)
    assert (cosine.type, cosine.T_max, cosine.eta_min) == ('CosineAnnealingLR', 300, 1e-5)
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    assert 1 - hooks['WeightAverageHook'].momentum == pytest.approx(0.99996)
    assert hooks['AdaptiveClipHook'].factor == (0.02 if family == 'evit' else 0.01)
    augmentation = steps(cfg, 'train_dataloader')
    policy = augmentation['RandAugment']
    assert (policy.policies, policy.num_policies, policy.magnitude_level, policy.magnitude_std) == (
        'timm_increasing', 2, 9, 0.5,
    )  # fmt: skip
    assert augmentation['RandomErasing'].erase_prob == 0.25
    assert augmentation['RandomResizedCrop'].scale == 224
    assert cfg.train_dataloader.sampler.repeats == 3
    mix = {augment.type: augment.alpha for augment in cfg.model.train_cfg.augments}
    assert mix == {'Mixup': 0.8, 'CutMix': 1.0}
    assert cfg.model.head.label_smoothing == 0.1
    drop_path = FAMILIES[family](arch).drop_path_rate
    assert drop_path == {'s2': 0.02, 'l': 0.1}.get(arch, 0.0)
    if family == 'evit':
        assert 'teacher' not in cfg.model
        assert cfg.optim_wrapper.paramwise_cfg.custom_keys.attention_biases.decay_mult == 0.0
    else:
        assert cfg.model.teacher.timm == 'regnety_160.deit_in1k'
        assert (cfg.model.head.distilled, cfg.model.head.distillation_share) == (True, 0.5)
    test = steps(cfg, 'val_dataloader')
    assert (test['ResizeEdge'].scale, test['CenterCrop'].crop_size) == (256, 224)
    assert tuple(cfg.val_evaluator.topk) == (1, 5)


def test_adaptive_clipping_is_that_of_timm(timm):
    from timm.utils.agc import adaptive_clip_grad

    shapes = [(), (5,), (4, 3), (6, 2, 3, 3)]
    own = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes] + [torch.nn.Parameter(torch.zeros(2, 2))]
    reference = [torch.nn.Parameter(parameter.detach().clone()) for parameter in own]
    for one, other in zip(own, reference, strict=True):
        one.grad = 0.05 * torch.randn_like(one)
        other.grad = one.grad.clone()
    norm = torch.cat([parameter.grad.flatten() for parameter in own]).norm()
    torch.testing.assert_close(adaptive_clip_(own, factor=0.02), norm)
    adaptive_clip_grad(reference, clip_factor=0.02)
    for one, other in zip(own, reference, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(('iterations', 'momentum'), [(375_000, 4e-5), (1500, 0.01), (10, 0.5)])
def test_the_average_of_a_short_training_forgets_its_start(iterations, momentum):
    hook = WeightAverageHook(momentum=4e-5)
    runner = SimpleNamespace(model=torch.nn.Linear(1, 1), max_iters=iterations, cfg={'train_cfg': {'max_epochs': 1}})
    hook.before_run(runner)
    assert hook.ema_model.momentum == pytest.approx(momentum)


def test_repeated_augmentation_draws_an_image_three_times_in_other_versions():
    sampler = SeededSampler(range(12), seed=0, repeats=3)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 12
    assert [drawn[i] for i in range(0, 12, 3)] == [drawn[i + 2] for i in range(0, 12, 3)]
    assert len({int(index) for index in drawn}) == 4
    assert len({index.seed for index in drawn}) == 12
    endless = SeededSampler(range(12), seed=0, repeats=3, endless=True)
    stream = iter(endless)
    assert [int(next(stream)) for _ in range(12)] == [int(index) for index in drawn]
