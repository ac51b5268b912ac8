"""A config's runner, and models of either library built in one process."""

import warnings

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import distributed as dist
from torch import nn

from mmplugin.engine.config import is_segmentation, without_sync_norms
from mmplugin.engine.strides import check_strides
from mmplugin.hooks.progress import quieten


class QuietRunner(Runner):
    """mmengine's, but the hundreds of lines that it says while it is built go to its log file only."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quieten(logger)
        return logger


def prepare(cfg: Config) -> None:
    """What must be right before anything is built: modules imported, and what needs a GPU only with one."""
    if is_segmentation(cfg):
        import mmseg.models  # noqa: F401
    else:
        import mmdet.models  # noqa: F401
    gpu = torch.cuda.is_available()
    if not gpu:
        without_sync_norms(cfg)
    if cfg.env_cfg.dist_cfg.backend == 'nccl' and not gpu:
        cfg.env_cfg.dist_cfg.backend = 'gloo'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader:
            loader.setdefault('pin_memory', gpu)
            if not loader.get('num_workers'):
                loader.persistent_workers = False


def build_model(cfg: Config) -> nn.Module:
    """Builds ``cfg.model`` in the scope of its library, whatever was built before in this process."""
    prepare(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    check_strides(model)
    return model


def _start_processes_without_gpu(cfg: Config) -> None:
    """mmengine's own start asks for a GPU, whatever the backend, and so does its default wrapper."""
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available() and not dist.is_initialized():
        dist.init_process_group('gloo')
        cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None))


def build_runner(cfg: Config) -> Runner:
    prepare(cfg)
    _start_processes_without_gpu(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # mmdet and mmseg are chatty while they build
        runner = QuietRunner.from_cfg(cfg)
    check_strides(runner.model)
    return runner
