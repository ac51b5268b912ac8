"""Frozen is frozen: after train(), in statistics, in gradients, over two processes, for any part of a model."""

import copy
import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_in_two_processes

import mmplugin  # registers everything, also in the processes that are started here

SMALL = dict(widths=(8, 16, 24, 32), depths=(1, 1, 1, 2), attention_blocks=1, key_dim=4, value_dim=8)
SMALLEST = [
    dict(type='EfficientFormer', arch=SMALL),
    dict(type='EfficientFormerV2', arch=dict(SMALL, ratios=((2,), (2,), (2,), (2, 2)))),
    dict(type='EfficientViTMSRA', arch=dict(widths=(16, 24, 32), depths=(1, 1, 2), heads=(2, 2, 2), kernels=(5, 3))),
]


def norms(module: nn.Module) -> list[_BatchNorm]:
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]


def one_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()


@pytest.mark.parametrize('settings', SMALLEST, ids=lambda settings: settings['type'])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_frozen_stages(settings, frozen_stages):
    model = MODELS.build(dict(settings, frozen_stages=frozen_stages))
    assert model.train() is model
    frozen = nn.ModuleList([model.stem, *model.stages[:frozen_stages]] if frozen_stages >= 0 else [])
    before = copy.deepcopy(model.state_dict())
    frozen_norms = norms(frozen)
    one_step(model)

    frozen_parameters = {id(parameter) for parameter in frozen.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen_parameters)
    assert not any(module.training for module in frozen.modules() if module is not frozen)
    for norm in norms(model):
        moved = norm.num_batches_tracked.item() > 0
        assert moved == (not any(norm is other for other in frozen_norms))
    names = ['stem.', *(f'stages.{i}.' for i in range(max(frozen_stages, 0)))] if frozen_stages >= 0 else []
    for key, value in model.state_dict().items():
        if key.startswith(tuple(names)):
            assert torch.equal(value, before[key])


@pytest.mark.parametrize('settings', SMALLEST, ids=lambda settings: settings['type'])
@pytest.mark.parametrize('synchronized', [False, True])
def test_norm_eval_freezes_statistics_but_not_scale_and_shift(settings, synchronized):
    model = MODELS.build(dict(settings, norm_eval=True))
    if synchronized:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    one_step(model)
    assert norms(model)
    for norm in norms(model):
        assert not norm.training
        assert norm.weight.grad is not None
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if 'running' in key or 'tracked' in key)
    assert not torch.equal(after['stem.0.norm.weight'], before['stem.0.norm.weight'])
    assert model.stages.training


def _one_of_two(rank: int, folder: str, work: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    globals()[work](rank)
    gc.collect()  # a DistributedDataParallel that outlives its process group waits forever
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, f'done{rank}').touch()


def _every_freezing(rank: int) -> None:
    for settings in SMALLEST:
        stages = len(MODELS.get(settings['type']).STRIDES)
        for frozen_stages in range(-1, stages):
            for out_indices in [(stages - 1,), (frozen_stages,) if frozen_stages > 0 else (0,), (0, stages - 1)]:
                if max(out_indices) < frozen_stages:
                    continue  # nothing would be trainable
                torch.manual_seed(0)
                model = MODELS.build(dict(settings, frozen_stages=frozen_stages, out_indices=out_indices))
                model = DistributedDataParallel(model.train())  # find_unused_parameters=False
                for step in range(2):  # DDP reports an unused parameter only in the second
                    torch.manual_seed(10 * step + rank)
                    sum(level.mean() for level in model(torch.randn(2, 3, 64, 64))).backward()


def test_two_processes_train_every_freezing_without_unused_parameters(tmp_path):
    run_in_two_processes(_one_of_two, str(tmp_path), _every_freezing.__name__)
    assert len(list(tmp_path.glob('done*'))) == 2


class Toy(BaseModel):
    def __init__(self, misbehave: bool = False):
        super().__init__()
        self.backbone = MODELS.build(dict(SMALLEST[0], out_indices=(0,)))
        self.neck = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
        self.misbehave = misbehave

    def forward(self, inputs, data_samples=None, mode='loss'):
        if self.misbehave:
            self.backbone.train()
        inputs = inputs if isinstance(inputs, torch.Tensor) else torch.stack(inputs)
        return dict(loss=self.neck(self.backbone(inputs)[0]).square().mean())


def train(tmp_path, hook: dict, **toy) -> Runner:
    data = [dict(inputs=torch.randn(3, 64, 64)) for _ in range(4)]
    runner = Runner(
        Toy(**toy),
        str(tmp_path),
        train_dataloader=dict(dataset=data, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=None),
        experiment_name=tmp_path.name,
        cfg=Config(),
    )
    runner.train()
    return runner


def test_hook_freezes_the_parts_and_logs_it(tmp_path):
    runner = train(tmp_path, dict(type='FreezeNormHook', parts=['neck'], affine=True))
    neck, backbone = norms(runner.model.neck)[0], norms(runner.model.backbone)[0]
    assert neck.num_batches_tracked == 0
    assert backbone.num_batches_tracked == 4
    assert neck.weight.eq(1).all()
    assert not neck.weight.requires_grad
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('1 norms of neck: statistics frozen, scale and shift frozen') == 1
    assert 'changed' not in log


def test_hook_reports_statistics_that_change_nevertheless(tmp_path):
    train(tmp_path, dict(type='FreezeNormHook'), misbehave=True)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'norms of backbone: statistics frozen, scale and shift trainable' in log
    assert 'frozen statistics changed, the first is backbone.stem.0.norm.running_mean' in log


def test_hook_names_the_parts_that_exist(tmp_path):
    with pytest.raises(ValueError, match=r"the model has no part 'bakbone'; it has .*backbone, neck"):
        train(tmp_path, dict(type='FreezeNormHook', parts=['bakbone']))
    with pytest.raises(ValueError, match="parts is 'backbone'; give a list of names"):
        HOOKS.build(dict(type='FreezeNormHook', parts='backbone'))


def _frozen_affine(rank: int) -> None:
    hook = HOOKS.build(dict(type='FreezeNormHook', parts=['backbone', 'neck'], affine=True))
    runner = SimpleNamespace(
        model=DistributedDataParallel(Toy()), wrap_model=lambda settings, model: DistributedDataParallel(model), cfg={}
    )
    hook.before_train(runner)
    runner.model.train()
    hook.before_train_iter(runner, 0)
    for _ in range(2):
        runner.model(torch.randn(2, 3, 64, 64))['loss'].backward()
    assert norms(runner.model.module.neck)[0].weight.grad is None


def test_hook_with_affine_leaves_no_unused_parameters_behind(tmp_path):
    run_in_two_processes(_one_of_two, str(tmp_path), _frozen_affine.__name__)
    assert len(list(tmp_path.glob('done*'))) == 2


def test_hook_and_neck_are_found_from_within_mmdet():
    # in a fresh process, where nothing has imported them yet
    code = (
        'import mmplugin; from mmdet.registry import HOOKS, MODELS; '
        "print(type(HOOKS.build(dict(type='FreezeNormHook'))).__name__, MODELS.get('UpsampledFPN') is not None)"
    )
    root = Path(mmplugin.__file__).parents[1]
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert run.stdout.splitlines()[-1:] == ['FreezeNormHook True'], run.stderr
