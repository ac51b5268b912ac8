"""A config's runner, and models of either library built in one process."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from mmplugin import stack
from mmplugin.config_edits import is_segmentation, without_sync_norms
from mmplugin.convert.checkpoint_io import allowed_globals
from mmplugin.engine.strides import check_strides
from mmplugin.hooks.progress import quieten


@contextmanager
def _prints_to_log() -> Iterator[None]:
    """What pycocotools and others print inside goes to the log, whose lines the terminal does not show."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        if text.getvalue():
            print_log(text.getvalue().rstrip(), logger='current', level=logging.INFO)


class _QuietEvaluator(Evaluator):
    def evaluate(self, size: int) -> dict:
        with _prints_to_log():
            return super().evaluate(size)


class QuietRunner(Runner):
    """mmengine's, but the hundreds of lines that it and the libraries below it say go to its log file only."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quieten(logger)
        return logger

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        with _prints_to_log():
            return Runner.build_dataloader(*args, **kwargs)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        with _prints_to_log():
            return super().build_evaluator(_QuietEvaluator(evaluator) if isinstance(evaluator, list) else evaluator)


def prepare(cfg: Config) -> None:
    """What must be right before anything is built: modules imported, and what needs a GPU only with one."""
    # Stock mmengine loads with torch's safe default, which refuses what mmengine itself saved: loss histories, numbers.
    torch.serialization.add_safe_globals(allowed_globals())
    stack.import_quietly('mmseg.models' if is_segmentation(cfg) else 'mmdet.models')
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
