"""Distributed data parallel with NCCL in one process. (Two processes run in the CPU's tests, with Gloo.)"""

import pytest
import torch
import torch.distributed as dist
from gpu.support import (
    ON_GPU,
    SMALLEST,
    assert_near,
    assert_near_gradients,
    build,
    cuda_only,
    gradients_of,
    image,
    loss_of,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.gpu

BACKEND = 'nccl' if ON_GPU else 'gloo'


@pytest.fixture
def _process_group(tmp_path):
    if not dist.is_backend_available(BACKEND):
        pytest.skip(f'this torch is built without {BACKEND}')
    dist.init_process_group(BACKEND, init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train_step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        maps = model(x)
    loss_of(maps).backward()


@pytest.mark.usefixtures('_process_group')
@pytest.mark.parametrize(
    'settings',
    [dict(), dict(norm_eval=True, frozen_stages=1), dict(norm_eval=True, with_cp=True), dict(out_indices=(0, 1))],
    ids=['all-trainable', 'frozen', 'checkpointed', 'fewer-stages'],
)
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_gradients_equal_those_without_ddp(name, arch, settings):
    plain = build(name, arch, drop_path_rate=0.0, **settings).train()
    # Every trainable parameter takes part: DDP need not look for unused ones.
    parallel = DistributedDataParallel(build(name, arch, drop_path_rate=0.0, **settings).train())
    for _ in range(2):  # the second step fails where the first left a bucket incomplete
        for model in (plain, parallel):
            model.zero_grad()
            train_step(model, image(2, 64, 96))
    assert_near_gradients(gradients_of(parallel.module), gradients_of(plain), 1e-3)


@pytest.mark.usefixtures('_process_group')
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_mixed_precision_under_ddp(name, arch):
    parallel = DistributedDataParallel(build(name, arch, norm_eval=True).train())
    train_step(parallel, image(2, 64, 96), torch.bfloat16)
    assert all(gradient.isfinite().all() for gradient in gradients_of(parallel.module).values())


@cuda_only
@pytest.mark.usefixtures('_process_group')
@pytest.mark.parametrize('norm_eval', [True, False])
@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_sync_batch_norm_equals_batch_norm_on_one_gpu(name, arch, norm_eval):
    settings = dict(norm_eval=norm_eval, drop_path_rate=0.0)
    plain = build(name, arch, **settings).train()
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(build(name, arch, **settings)).train()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules())
    parallel = DistributedDataParallel(synchronized)
    for model in (plain, parallel):
        train_step(model, image(2, 64, 96))
    assert_near_gradients(gradients_of(synchronized), gradients_of(plain), 1e-3)
    for key, value in plain.named_buffers():
        assert_near(synchronized.get_buffer(key), value, 1e-4, key)
