"""Automatic mixed precision: nothing overflows, and results stay close to float32."""

import pytest
import torch
from gpu.support import ARCHS, DEVICE, ON_GPU, SMALLEST, build, gradients_of, image, loss_of, relative_error
from torch import nn

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16]
SIZES = [(512, 512), (800, 1333)] if ON_GPU else [(75, 101)]
# Norm of the difference to float32 over the norm of the float32 result.
FEATURE_ERROR = {torch.float16: 0.01, torch.bfloat16: 0.08}
GRADIENT_ERROR = {torch.float16: 0.03, torch.bfloat16: 0.1}
LOSS_SCALE = 2.0**10


def train_step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype | None, loss_scale: float) -> torch.Tensor:
    """Run forward and backward; return all gradients as one vector, the loss scale removed."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        maps = model(x)
    (loss_of(maps) * loss_scale).backward()
    gradients = gradients_of(model)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert not [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return torch.cat([gradient.flatten() for gradient in gradients.values()]) / loss_scale


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_features_are_finite_and_close_to_float32(name, arch, dtype):
    model = build(name, arch).eval()
    for height, width in SIZES:
        x = image(1, height, width)
        with torch.no_grad():
            expected = model(x)
            with torch.autocast(DEVICE.type, dtype):
                maps = model(x)
        for level, full in zip(maps, expected, strict=True):
            assert level.isfinite().all()
            assert relative_error(level, full) < FEATURE_ERROR[dtype]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_gradients_are_finite_and_close_to_float32(name, arch, dtype):
    model = build(name, arch, norm_eval=True, drop_path_rate=0.0).train()
    x = image(2, *SIZES[0])
    expected = train_step(model, x, None, 1.0)
    found = train_step(model, x, dtype, LOSS_SCALE if dtype == torch.float16 else 1.0)
    assert relative_error(found, expected) < GRADIENT_ERROR[dtype]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_gradients_are_finite_with_trained_norms(name, arch, dtype):
    # No bound on the error: with random weights and batch statistics, float32 itself has errors of percents.
    x = image(2, *(SIZES[0] if ON_GPU else (192, 256)))
    assert train_step(build(name, arch).train(), x, dtype, 1.0).isfinite().all()


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_a_fused_backbone_in_half_precision(name, arch):
    model, x = build(name, arch).eval().fuse(), image(1, 75, 101)
    with torch.no_grad():
        expected = model(x)
        maps = model.half()(x.half())
    for level, full in zip(maps, expected, strict=True):
        assert level.dtype == torch.float16
        assert relative_error(level, full) < FEATURE_ERROR[torch.float16]


def test_the_loss_scaler_takes_its_steps():
    model = build(*SMALLEST[1], norm_eval=True, drop_path_rate=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(DEVICE.type)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x, losses = image(2, 64, 96), []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16):
            loss = loss_of(model(x))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert scaler.get_scale() >= 2.0**10
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
