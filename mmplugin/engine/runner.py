"""Build runners and models of mmdet and mmseg in one process."""

import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmplugin.config_edits import detailed_evaluators, import_scope, replace_sync_norms_
from mmplugin.cpu_threads import allowed_cores, limit_threads
from mmplugin.data.load_errors import empty_dataset_is_named, name_files_in_errors_, require_annotation_files
from mmplugin.engine import weights
from mmplugin.engine.processes import start_group
from mmplugin.engine.resume import check_optimizer, check_resumable
from mmplugin.engine.strides import check_strides
from mmplugin.errors import UserError
from mmplugin.hooks.progress import ProgressHook, only_warnings_on_terminal
from mmplugin.hooks.stop_signal import leave_signals_to_parent_

MOST_THREADS = 1024  # that a checkpoint may ask for


@contextmanager
def _prints_to_log() -> Iterator[None]:
    """Send what pycocotools and others print to the log."""
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


class CommandRunner(Runner):
    """mmengine's runner for the commands ``train`` and ``test``.

    Its metrics measure what the report shows, see ``detailed_evaluators``. Information about the run goes to the log
    file; the terminal shows progress and warnings. Checkpoints must fit the model: see ``mmplugin.engine.weights``.

    Attributes:
        load: Loads weights into the model; one of the functions of ``mmplugin.engine.weights``.
        fit: How the weights that were loaded last compared with the model.
        resumed_at_end: Whether the checkpoint to resume from was the last one of its training.
    """

    load = staticmethod(weights.load_for_finetuning)
    fit: weights.Fit | None = None
    resumed_at_end = False

    def close_progress(self) -> None:
        """Close the progress bar, also after an error."""
        for hook in self.hooks:
            if isinstance(hook, ProgressHook):
                hook.close()

    def load_checkpoint(self, filename: str, map_location: Any = 'cpu', **unused: Any) -> dict:
        """Load weights strictly, as far as the command wants it; return the whole checkpoint."""
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location)
        if self._resume:
            self._check_resumable(checkpoint, filename)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        load = weights.load_exactly if self._resume else self.load
        self.fit = load(weights.inner_model(self.model), weights.state_dict_of(checkpoint, filename), filename)
        self._has_loaded = True
        if self._resume:
            # The optimizer keeps these tensors; mapped ones would end with the file that they are mapped from.
            checkpoint['optimizer'] = copy.deepcopy(checkpoint['optimizer'])
            threads = checkpoint['meta'].get('threads')
            if 'OMP_NUM_THREADS' not in os.environ and isinstance(threads, int) and 0 < threads <= MOST_THREADS:
                torch.set_num_threads(threads)
        return checkpoint

    def save_checkpoint(self, *args: Any, meta: dict | None = None, **kwargs: Any) -> None:
        """Save a checkpoint, and the number of threads, which decides the last digits of sums."""
        super().save_checkpoint(*args, meta={**(meta or {}), 'threads': torch.get_num_threads()}, **kwargs)

    def _check_resumable(self, checkpoint: dict, filename: str) -> None:
        loop = self.train_loop
        epoch_length = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None
        self.resumed_at_end = check_resumable(checkpoint, filename, self.max_iters, epoch_length) == self.max_iters
        saved, own = checkpoint.get('param_schedulers') or [], self.param_schedulers or []
        if not isinstance(saved, type(own)) or len(saved) != len(own):
            raise UserError(
                f'--resume {filename}: its learning rate schedules do not fit this config, which has {len(own)}; to '
                f'start a new training from its weights, use --cfg-options load_from={filename}'
            )

    def resume(self, filename: str, resume_optimizer: bool = True, **settings: Any) -> None:
        """Continue a training exactly, or refuse."""
        try:
            super().resume(filename, resume_optimizer, **settings)
            check_optimizer(self.optim_wrapper.optimizer, filename)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f'--resume {filename}: its training state does not fit this config ({error}); '
                f'to start a new training from its weights, use --cfg-options load_from={filename}'
            ) from error

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger; only warnings and errors reach the terminal."""
        logger = super().build_logger(*args, **kwargs)
        only_warnings_on_terminal(logger)
        return logger

    @staticmethod
    def build_dataloader(dataloader: Any, *args, **kwargs) -> DataLoader:
        """Build a data loader without prints, whose errors name the file, and whose workers leave signals to us."""
        require_annotation_files(dataloader)
        with _prints_to_log(), empty_dataset_is_named(dataloader):
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        name_files_in_errors_(loader.dataset)
        leave_signals_to_parent_(loader)
        return loader

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        """Build the metrics of a config, or what replaces them."""
        require_annotation_files(evaluator)
        with _prints_to_log():
            if isinstance(evaluator, Evaluator) or 'metrics' in evaluator:  # an evaluator of the user's own type
                return super().build_evaluator(evaluator)
            return _QuietEvaluator(detailed_evaluators(evaluator))


def prepare_(cfg: Config, trust: bool = False) -> None:
    """Import what a config needs, adapt it to the machine, and read checkpoints safely unless they are trusted."""
    weights.use_safe_loader(trust)
    import_scope(cfg, 'models')
    gpu = torch.cuda.is_available()
    if not gpu:
        replace_sync_norms_(cfg)
    if cfg.env_cfg.dist_cfg.backend == 'nccl' and not gpu:
        cfg.env_cfg.dist_cfg.backend = 'gloo'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader:
            loader.setdefault('pin_memory', gpu)
            if not loader.get('num_workers'):
                loader.persistent_workers = False
            if name != 'train_dataloader' and loader.get('sampler', {}).get('type') == 'DefaultSampler':
                # Metrics that keep sums only cannot drop images that fill up the last batch of some processes.
                loader.sampler.setdefault('round_up', False)


def build_model(cfg: Config) -> nn.Module:
    """Build ``cfg.model`` in the scope of its library, whatever was built before in this process."""
    prepare_(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    check_strides(model)
    return model


def _start_group_(cfg: Config) -> None:
    """Start the process group of torchrun, also without GPUs, which mmengine's default wrapper requires."""
    if cfg.get('launcher') != 'pytorch':
        return
    start_group(cfg.env_cfg.dist_cfg.backend)
    if not torch.cuda.is_available():
        cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None))


def _share_cores(cfg: Config) -> None:
    """Choose the number of threads of this process, and say so if other programs keep it from using all cores."""
    loader = cfg.get('train_dataloader') or cfg.get('test_dataloader') or {}
    left = limit_threads(loader.get('num_workers', 0), torch.set_num_threads)
    if left:
        print_log(
            f'{left} of {allowed_cores()} cores {"is" if left == 1 else "are"} busy with other programs: this run uses '
            f'{torch.get_num_threads()} threads; set OMP_NUM_THREADS to choose another number',
            'current',
            logging.WARNING,
        )


def build_runner(cfg: Config, trust: bool = False) -> CommandRunner:
    """Build the runner of a config, and check that the parts of its model fit together.

    Args:
        cfg: The config, adapted in place.
        trust: Run the code that checkpoints may contain.
    """
    prepare_(cfg, trust)
    _share_cores(cfg)
    _start_group_(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # mmdet and mmseg emit many while they build
        runner = CommandRunner.from_cfg(cfg)
    check_strides(runner.model)
    return runner
