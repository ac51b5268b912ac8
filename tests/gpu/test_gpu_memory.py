"""Memory as the CUDA allocator counts it."""

import gc
from collections.abc import Callable

import pytest
import torch
from gpu.support import DEVICE, SMALLEST, build, cuda_only, image
from torch import nn

from mmplugin import ops
from mmplugin.layers import OffsetBias, attend

pytestmark = [pytest.mark.gpu, cuda_only]

HEADS, WIDTH = 8, 32


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the highest memory during a call beyond the memory before it. The first call warms up."""
    run()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def saved_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Return the memory that a forward pass leaves allocated for backward, feature maps included."""
    model(x)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    maps = model(x)
    torch.cuda.synchronize()
    saved = torch.cuda.memory_allocated() - before
    assert len(maps) > 2
    return saved


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('talking', [False, True])
def test_attention_grows_with_the_number_of_pixels(talking, training):
    bias = OffsetBias(HEADS, 7).to(DEVICE)
    talking_heads = tuple(nn.Conv2d(HEADS, HEADS, 1).to(DEVICE) for _ in range(2)) if talking else None

    def peak(height: int) -> int:
        q, k, v = (torch.randn(1, HEADS, 16, height * WIDTH, device=DEVICE, requires_grad=training) for _ in range(3))

        def run():
            with torch.set_grad_enabled(training):
                result = attend(q, k, v, bias, (height, WIDTH), talking_heads)
                if training:
                    torch.autograd.grad(result.sum(), [q, k, v])

        return peak_bytes(run)

    small, large = peak(64), peak(256)  # 4 times the pixels, 16 times the pairs
    assert large < 5 * small
    pairs = HEADS * (256 * WIDTH) ** 2
    assert large < 4 * pairs / 8  # 4 bytes each


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_frozen_norms_save_less_for_backward_than_trained_ones(name, arch):
    # A norm that trains cannot be folded: its input is saved as well.
    x = image(2, 256, 256)
    frozen, trained = (
        saved_bytes(build(name, arch, norm_eval=norm_eval, drop_path_rate=0.0).train(), x)
        for norm_eval in (True, False)
    )
    assert frozen < 0.7 * trained


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_activation_checkpointing_saves_less(name, arch):
    x = image(2, 256, 256)
    plain, checkpointed = (saved_bytes(build(name, arch, with_cp=with_cp).train(), x) for with_cp in (False, True))
    assert checkpointed < 0.6 * plain


def test_nms_of_50000_boxes_never_holds_all_pairs():
    corner = torch.rand(50000, 2, device=DEVICE) * 3000
    boxes, scores = torch.cat((corner, corner + 10), 1), torch.rand(50000, device=DEVICE)
    assert peak_bytes(lambda: ops.nms(boxes, scores, 0.001)) < 400e6  # all pairs: 10 GB
