"""``torch.compile`` for inference and for training: eager's numbers, one graph for many sizes, no graph break."""

import os
import shutil
from collections.abc import Callable

import pytest
import torch
from gpu.support import DEVICE, ON_GPU, TINY, assert_near, build, gradients_of, image, loss_of, relative_error
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON_GPU and not any(map(shutil.which, (os.environ.get('CC', 'cc'), 'gcc', 'clang'))),
        reason='Triton needs a C compiler: install gcc, or set CC',
    ),
]

# A dry run on a CPU traces everything but generates no code, and takes one network: tracing is what takes the time.
BACKEND = 'inductor' if ON_GPU else 'eager'
NAMES = list(TINY) if ON_GPU else ['EfficientFormerV2']
# Above 700 pixels no map has the size of a window or of one pixel, which have graphs of their own.
SIZES = [(700, 900), (733, 1029), (766, 901), (800, 1320)][: 4 if ON_GPU else 2]
# One graph is enough for these sizes where no code is generated; inductor may distinguish a case or two.
MOST_GRAPHS = 3 if ON_GPU else 1


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_equals_eager(model: nn.Module, compiled: Callable, training: bool, height: int, width: int) -> None:
    x, results, gradients = image(1, height, width), [], []
    for step in (model, compiled):
        model.zero_grad(set_to_none=True)
        results.append(step(x))
        if training:
            loss_of(results[-1]).backward()
            gradients.append(torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]))
    for expected, level in zip(*results, strict=True):
        assert_near(level, expected, 1e-4, f'{height}x{width}')
    if training:
        assert relative_error(gradients[1], gradients[0]) < 1e-3


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_few_graphs_serve_all_sizes(name, training):
    model = build(name, TINY[name], norm_eval=True, drop_path_rate=0.0)
    model = model.train() if training else model.eval().fuse()
    compiled = torch.compile(model, backend=BACKEND, dynamic=True, fullgraph=True)
    # With fullgraph, a graph break or one recompilation too many is an error.
    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS), torch.set_grad_enabled(training):
        for size in SIZES:
            assert_equals_eager(model, compiled, training, *size)


def test_training_with_batch_statistics():
    model = build('EfficientFormerV2', TINY['EfficientFormerV2'], drop_path_rate=0.0).train()
    compiled = torch.compile(model, backend=BACKEND, dynamic=False, fullgraph=True)
    assert_equals_eager(model, compiled, True, 256, 320)


@pytest.mark.parametrize(
    # Inference calls one custom operator for attention: V1's with a fused kernel, V2's with talking heads.
    ('name', 'training'),
    [('EfficientFormer', False), ('EfficientFormerV2', False), ('EfficientFormerV2', True)],
)
def test_mixed_precision(name, training):
    model, x = build(name, TINY[name], norm_eval=True, drop_path_rate=0.0).train(training), image(1, 256, 320)
    compiled = torch.compile(model, backend=BACKEND, dynamic=False)
    with torch.set_grad_enabled(training), torch.autocast(DEVICE.type, torch.bfloat16):
        maps, expected = compiled(x), model(x)
    for level, wanted in zip(maps, expected, strict=True):
        assert relative_error(level, wanted) < 0.03
    if training:
        loss_of(maps).backward()
        assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())
