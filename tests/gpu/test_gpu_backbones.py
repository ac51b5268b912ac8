"""The backbones on a GPU: devices, fusing, memory layout, freezing, host synchronization, CUDA graphs."""

import contextlib
import copy

import pytest
import torch
from dispatch_counter import Counted
from gpu.support import ARCHS, DEVICE, ON_GPU, SMALLEST, assert_near, build, cuda_only, gradients_of, image, loss_of
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.gpu

# Operators whose result the host has to wait for.
SYNCHRONIZING = ('_local_scalar_dense', 'nonzero', 'masked_select', 'aten.equal', '_unique', 'bincount')


@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_results_are_those_of_the_cpu(name, arch):
    model, x = build(name, arch).eval(), image(1, 160, 224)
    with torch.no_grad():
        maps = model(x)
        expected = model.cpu()(x.cpu())
    for level, wanted in zip(maps, expected, strict=True):
        assert level.device.type == DEVICE.type
        assert_near(level, wanted, 2e-4)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_a_model_with_warm_caches_moves_between_devices(name, arch, fused):
    model, x = build(name, arch).cpu().eval(), image(1, 75, 101)
    if fused:
        model.fuse()
    with torch.no_grad():
        on_cpu = model(x.cpu())  # packs weights, computes bias tables
        for _ in range(2):
            for level, wanted in zip(model.to(DEVICE)(x), on_cpu, strict=True):
                assert level.device.type == DEVICE.type
                assert_near(level, wanted, 2e-4, 'on the device')
            for level, wanted in zip(model.cpu()(x.cpu()), on_cpu, strict=True):
                assert_near(level, wanted, 1e-6, 'back on the CPU')
        doubled = model.to(DEVICE, torch.float64)(x.double())
        assert_near(doubled[-1], on_cpu[-1], 2e-4, 'in float64')


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_no_cache_survives_new_weights(name, arch):
    model, x = build(name, arch).eval(), image(1, 75, 101)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model(x)
        for parameter in other.parameters():
            parameter.mul_(1.1)
        model.load_state_dict(other.state_dict())
        for level, wanted in zip(model(x), other(x), strict=True):
            assert_near(level, wanted, 1e-6)


class Devices(TorchDispatchMode):
    """Collect the devices of all tensors that operators return."""

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.found.add(value.device.type)
        return result


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_no_tensor_is_created_on_another_device(name, arch, training):
    # A dry run stands the meta device in for the GPU: a CPU tensor shows there in the same way.
    device = DEVICE if ON_GPU else torch.device('meta')
    model, x = build(name, arch, norm_eval=True).to(device).train(training), image(1, 256, 320).to(device)
    with torch.set_grad_enabled(training), Devices() as devices:
        maps = model(x)
        if training:
            loss_of(maps).backward()
    assert devices.found == {device.type}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_no_operator_reads_a_value_back(name, arch, training):
    model, x = build(name, arch, drop_path_rate=0.1).train(training), image(1, 256, 320)
    with torch.set_grad_enabled(training), Counted() as operators:
        maps = model(x)
        if training:
            loss_of(maps).backward()
    assert len(operators.names) > 100
    assert not [op for op in operators.names if any(name in op for name in SYNCHRONIZING)]


@contextlib.contextmanager
def no_synchronization():
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@cuda_only
@pytest.mark.parametrize('mode', ['training', 'inference', 'fused', 'fp16'])
@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_the_host_never_waits_for_the_device(name, arch, mode):
    training = mode == 'training'
    model, x = build(name, arch).train(training), image(1, 512, 512)
    if mode == 'fused':
        model.fuse()

    def step():
        with torch.set_grad_enabled(training), torch.autocast('cuda', torch.float16, enabled=mode == 'fp16'):
            maps = model(x)
        if training:
            loss_of(maps).backward()

    step()  # the first image of a size computes constants on the CPU and copies them
    torch.cuda.synchronize()
    with no_synchronization():
        step()
    torch.cuda.synchronize()


@cuda_only
def test_the_check_for_synchronization_can_fail():
    with no_synchronization(), pytest.raises(RuntimeError, match='synchroniz'):
        torch.ones((), device=DEVICE).item()


@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_fused_is_equal(name, arch):
    model, x = build(name, arch).eval(), image(2, 75, 101)
    with torch.no_grad():
        expected = model(x)
        maps = model.fuse()(x)
    assert {parameter.device.type for parameter in model.parameters()} == {DEVICE.type}
    for level, wanted in zip(maps, expected, strict=True):
        assert_near(level, wanted, 2e-4)


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_feature_maps_are_channels_last_for_every_layout_of_image_and_weights(name, arch):
    model, x = build(name, arch).eval(), image(2, 128, 160)
    with torch.no_grad():
        expected = model(x)
        channels_last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    for level, wanted in zip(channels_last, expected, strict=True):
        assert_near(level, wanted, 2e-4)
        for result in (level, wanted):
            assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_frozen_parts_stay_as_they_are(name, arch):
    model = build(name, arch, frozen_stages=1, norm_eval=True).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(image(2, 64, 96))).backward()
        optimizer.step()
    after, trainable = model.state_dict(), set(gradients_of(model))
    assert {key for key in trainable if key.startswith(('stem.', 'stages.0.'))} == set()
    assert all(torch.equal(before[key], after[key]) for key in before if key not in trainable)
    weights = [key for key in trainable if key.endswith('conv.weight')]
    assert weights
    assert not [key for key in weights if torch.equal(before[key], after[key])]


@cuda_only
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_a_fused_backbone_in_a_cuda_graph(name, arch):
    model, x = build(name, arch).eval().fuse(), image(1, 256, 320)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            maps = model(x)
        other = image(1, 256, 320, seed=2)
        x.copy_(other)
        graph.replay()
        for level, wanted in zip(maps, model(other), strict=True):
            assert_near(level, wanted, 1e-4)
