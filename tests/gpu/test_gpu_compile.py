"""``torch.compile`` for inference and for training: eager's numbers, one graph for many sizes, no graph break."""

import os
import shutil
from collections.abc import Callable

import pytest
import torch
from gpu.support import DEVICE, ON_GPU, TINY, assert_near, build, gradients_of, image, loss_of, relative_error
from torch import nn
from torch._dynamo import lookup_backend

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
SIZES = [(700, 900), (733, 1029), (766, 901), (901, 766), (800, 1333)][: 5 if ON_GPU else 2]
# The first graph, and two more where the compiler distinguishes small and large, or odd and even maps.
MOST_GRAPHS = 3


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
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend(BACKEND)(graph, inputs)

    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    with torch.set_grad_enabled(training):
        for size in SIZES:
            assert_equals_eager(model, compiled, training, *size)
    assert 1 <= len(graphs) <= MOST_GRAPHS


@pytest.mark.parametrize('name', NAMES)
def test_training_with_batch_statistics(name):
    model = build(name, TINY[name], drop_path_rate=0.0).train()
    compiled = torch.compile(model, backend=BACKEND, dynamic=False, fullgraph=True)
    assert_equals_eager(model, compiled, True, 256, 320)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', NAMES)
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
