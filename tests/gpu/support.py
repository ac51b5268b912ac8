"""What the GPU tests share: the device, the networks and how results are compared."""

import os

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmplugin.backbones import FAMILIES

DEVICE = torch.device(os.environ.get('MMPLUGIN_TEST_DEVICE', 'cuda'))
ON_GPU = DEVICE.type == 'cuda'
cuda_only = pytest.mark.skipif(not ON_GPU, reason='uses a function of CUDA that a CPU does not have')

SMALLEST = [('EfficientFormer', 'l1'), ('EfficientFormerV2', 's0'), ('EfficientViTMSRA', 'm0')]
# A dry run on a CPU takes the smallest arch of each family.
ARCHS = [(cls.__name__, arch) for cls in FAMILIES.values() for arch in cls.ARCHS] if ON_GPU else SMALLEST
# One block of each kind, for tests that compile.
TINY = {
    'EfficientFormer': dict(widths=(64,) * 4, depths=(1, 1, 1, 2), attention_blocks=1),
    'EfficientFormerV2': dict(widths=(64,) * 4, depths=(1, 1, 1, 1), attention_blocks=1, ratios=((4,),) * 4),
    'EfficientViTMSRA': dict(widths=(256,) * 3, depths=(1, 1, 1), heads=(2, 2, 2), kernels=(3, 3)),
}


def build(name: str, arch: str | dict, **settings) -> nn.Module:
    """Build on the CPU, so that weights do not depend on the device, then move.

    Layer scales, bias tables and norms get values like those of pretrained weights, so that no branch vanishes.
    """
    torch.manual_seed(0)
    model = MODELS.build(dict(type=name, arch=arch, **settings))
    for key, value in model.state_dict().items():
        if 'layer_scale' in key or 'attention_biases' in key or key.endswith('running_mean'):
            value.normal_(0.1, 0.1)
        elif key.endswith(('norm.weight', 'running_var')):
            value.uniform_(0.5, 1.0)
    return model.to(DEVICE)


def image(batch: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def loss_of(maps: tuple[Tensor, ...]) -> Tensor:
    """A loss that depends on every feature map."""
    return sum(level.float().square().mean() for level in maps)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_near(found: Tensor, expected: Tensor, tolerance: float, what: str = 'result') -> None:
    """Check the largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape, what
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= tolerance * largest, f'{what}: differs by {difference:.3g}, the largest value is {largest:.3g}'


def assert_near_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Check all gradients of one step.

    Some are zero but for rounding, such as that of the keys' bias, which a softmax cancels. So a difference counts
    relative to the largest value of its gradient, or to a hundredth of the largest of all where that is more.
    """
    assert list(found) == list(expected)
    floor = max(gradient.abs().max().item() for gradient in expected.values()) / 100
    for name, gradient in found.items():
        wanted = expected[name].cpu().double()
        difference = (gradient.cpu().double() - wanted).abs().max().item()
        scale = max(wanted.abs().max().item(), floor)
        assert difference <= tolerance * scale, f'gradient of {name}: differs by {difference:.3g} at {scale:.3g}'


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected values."""
    expected = expected.detach().cpu().double()
    return ((found.detach().cpu().double() - expected).norm() / expected.norm()).item()
