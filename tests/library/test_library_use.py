"""Backbones as a library: threads, copies, dtypes, and whatever else a program does with a module."""

import copy
import io
import pickle
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from random_backbones import SMALLEST, build
from torch import Tensor, nn

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError
from mmplugin.layers.attention_bias import OffsetBias
from mmplugin.memory import release_freed_memory

SIZE = (64, 96)


@pytest.fixture(params=SMALLEST, ids='-'.join)
def model(request) -> nn.Module:
    return build(*request.param).eval()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def image(*size: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *(size or SIZE), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(model: nn.Module, *size: int) -> tuple[Tensor, ...]:
    return model(image(*size))


def fresh(model: nn.Module, *size: int) -> tuple[Tensor, ...]:
    """Return the result of a new module with the same weights, whose caches are empty."""
    other = type(model)(model.arch)
    other.load_state_dict(model.state_dict())
    return run(other.eval(), *size)


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def change_(model: nn.Module, number: float = 1.25) -> None:
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.mul_(number)


def test_eight_threads_on_one_module_get_the_results_of_one(model, one_thread):
    sizes = [(32, 32), (64, 96), (33, 40), (96, 64), (70, 32)]
    expected = {size: fresh(model, *size) for size in sizes}
    with ThreadPoolExecutor(8) as pool:
        for size, found in zip(sizes * 8, pool.map(lambda size: run(model, *size), sizes * 8), strict=True):
            assert_equal(found, expected[size])


def test_threads_survive_more_sizes_than_a_cache_holds(model, one_thread):
    for module in model.modules():
        if hasattr(module, 'max_cached_sizes'):
            module.max_cached_sizes = 1
    sizes = [(32, 32), (64, 96), (96, 64)]
    expected = {size: fresh(model, *size) for size in sizes}
    with ThreadPoolExecutor(8) as pool:
        for size, found in zip(sizes * 8, pool.map(lambda size: run(model, *size), sizes * 8), strict=True):
            assert_equal(found, expected[size])


def test_a_thread_may_call_eval_while_others_run():
    """It clears the cache of the bias tables. Threads switch as often as Python allows."""
    bias, before = OffsetBias(1, 2), sys.getswitchinterval()

    @torch.no_grad()
    def infer() -> None:
        for _ in range(5000):
            bias.offsets(2, 2)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(infer) for _ in range(3)]
            while not all(future.done() for future in running):
                bias.eval()
    finally:
        sys.setswitchinterval(before)
    assert [future.exception() for future in running] == [None] * 3


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
                         ids=['deepcopy', 'pickle', 'torch.save'])  # fmt: skip
def test_a_copy_is_equal_and_independent(model, duplicate):
    before = run(model)  # fills the caches
    other = duplicate(model)
    assert_equal(run(other), before)
    change_(other)
    assert_equal(run(other), fresh(other))
    assert_equal(run(model), before)


def test_replicas_of_one_module_run_at_the_same_time(model, one_thread):
    """As nn.DataParallel: shallow copies that share parameters, each in a thread of its own."""
    replicas = [copy.copy(model) for _ in range(4)]
    expected = run(model)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, replicas * 4):
            assert_equal(found, expected)


@pytest.mark.parametrize('assign', [False, True])
def test_loading_weights_replaces_what_is_cached(model, assign):
    run(model)
    other = copy.deepcopy(model)
    change_(other)
    model.load_state_dict({key: value.clone() for key, value in other.state_dict().items()}, assign=assign)
    assert_equal(run(model), fresh(other))


def test_weights_of_a_meta_module_can_be_assigned_or_copied(model):
    with torch.device('meta'):
        assigned = type(model)(model.arch)
    copied = copy.deepcopy(assigned).to_empty(device='cpu')
    assigned.load_state_dict(model.state_dict(), assign=True)
    copied.load_state_dict(model.state_dict())
    for other in (assigned, copied):
        assert_equal(run(other.eval()), run(model))


def test_mmengines_moving_average_gives_the_result_of_the_averaged_weights(model):
    average = ExponentialMovingAverage(model, momentum=0.5, update_buffers=True)
    run(average.module.eval())
    average.update_parameters(model)
    change_(model)
    average.update_parameters(model)
    assert_equal(run(average.module.eval()), fresh(average.module))


def test_parameters_changed_in_place_change_the_result(model):
    run(model)
    change_(model)
    assert_equal(run(model), fresh(model))


def test_parameters_changed_through_data_change_the_result_after_eval(model):
    """As mmengine's EMAHook: it swaps ``.data`` and then calls eval()."""
    run(model)
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
    assert_equal(run(model.eval()), fresh(model))


def test_training_is_possible_after_inference_mode(model):
    with torch.inference_mode():
        model(image())
    model.train()
    sum(level.square().mean() for level in model(image(batch=2))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_module_that_is_created_in_inference_mode_runs(model):
    with torch.inference_mode():
        other = type(model)(model.arch)
        other.load_state_dict(model.state_dict())
        found = [other.eval()(image()) for _ in range(2)]
    for maps in found:
        for a, b in zip(maps, run(model), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.2)])
def test_other_dtypes_give_the_same_maps_within_rounding(model, dtype, tolerance):
    expected = run(model)
    with torch.no_grad():
        maps = model.to(dtype)(image().to(dtype))
    for a, b in zip(maps, expected, strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).std() <= tolerance * b.std()
    for a, b in zip(run(model.float()), expected, strict=True):  # back again: nothing of the other dtype is left
        assert (a - b).std() <= tolerance * b.std()


@pytest.mark.parametrize('mode', ['no_grad', 'grad', 'fused', 'upstream'])
def test_an_empty_batch_gives_empty_maps_of_the_right_shape(model, mode):
    if mode == 'upstream':
        if 'MSRA' in type(model).__name__:
            pytest.skip('has no upstream bias')
        model = build(type(model).__name__, model.arch, attention_bias='upstream').eval()
    if mode == 'fused':
        model.fuse()
    with torch.set_grad_enabled(mode == 'grad'):
        maps = model(torch.zeros(0, 3, *SIZE))
    wanted = [
        (0, c, -(-SIZE[0] // s), -(-SIZE[1] // s)) for c, s in zip(model.out_channels, model.out_strides, strict=True)
    ]
    assert [tuple(level.shape) for level in maps] == wanted


def test_norms_can_be_converted_to_sync_norms(model):
    expected = run(model)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    for a, b in zip(run(converted.eval()), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_of_a_fused_module_stays_fused(model):
    other = copy.deepcopy(model.fuse())
    assert_equal(run(other), run(model))
    with pytest.raises(UserError, match='fused'):
        other.train()


def test_nan_in_one_image_stays_in_it(model):
    x = image(batch=2)
    x[1, :, 5, 5] = torch.nan
    with torch.no_grad():
        maps, expected = model(x), model(x[:1])
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-4)
        assert a[1].isnan().any()


def resident() -> int:
    """Return the memory of the process in bytes."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_memory_does_not_grow_over_300_random_sizes(name, arch):
    model, random = build(name, arch).eval(), Random(0)
    sizes = [(random.randrange(32, 500), random.randrange(32, 500)) for _ in range(300)]
    used = []
    for i, size in enumerate(sizes):
        run(model, *size)
        if i >= 100 and i % 50 == 49:
            release_freed_memory()  # glibc keeps the gaps that many sizes leave; what is in use must not grow
            used.append(resident())
    assert max(used) < used[0] + 60e6


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'arch'), [(cls.__name__, arch) for cls in FAMILIES.values() for arch in cls.ARCHS])
def test_half_precision_is_finite_at_detection_size(name, arch):
    model, x = build(name, arch).eval(), image(800, 1333)
    for key, value in model.state_dict().items():
        if key.endswith('talking_head2.bias'):  # counts once for every key, of which there are a thousand
            value.mul_(0.01)
    assert all(level.abs().max() < 1e4 for level in run(model, 800, 1333))  # float16 ends at 65,504
    for dtype in (torch.float16, torch.bfloat16):
        with torch.no_grad(), torch.autocast('cpu', dtype):
            maps = model(x)
        assert all(level.isfinite().all() for level in maps), dtype
        with torch.no_grad():
            maps = copy.deepcopy(model).to(dtype)(x.to(dtype))
        assert all(level.isfinite().all() for level in maps), dtype
