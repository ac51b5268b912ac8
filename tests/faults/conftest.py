"""A tiny training whose runner is built once, so that checkpoints can be tried on it in milliseconds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_config, write

from mmplugin.engine import runner as runners
from mmplugin.engine import test, train, weights
from mmplugin.engine.config import load_config


@dataclass
class Tiny:
    """A RetinaNet with six iterations.

    Args:
        config: Its config.
        checkpoint: A checkpoint at the end of its first epoch.
        runner: Its runner. Commands use it instead of a new one, and stop after loading.
    """

    config: Path
    checkpoint: Path
    runner: runners.CommandRunner

    def content(self) -> dict[str, Any]:
        """Return the content of the checkpoint, to be changed."""
        return torch.load(self.checkpoint, weights_only=False)

    def train(self, work_dir: Path, *arguments: object) -> None:
        """Run the command ``train`` until it has loaded its checkpoint."""
        train.main([str(self.config), '--work-dir', str(work_dir), '--no-check', '--no-report', *map(str, arguments)])

    def test(self, work_dir: Path, *arguments: object) -> None:
        """Run the command ``test`` until it has loaded its checkpoint."""
        test.main([str(self.config), *map(str, arguments), '--work-dir', str(work_dir)])


@pytest.fixture(scope='session')
def tiny_runner(tiny_sets: None, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Build the runner and save a checkpoint."""
    folder = tmp_path_factory.mktemp('tiny')
    config = tiny_config('retinanet_evit_m0', folder / 'config')
    cfg = load_config(config)
    # Few tensors, so that files load fast.
    cfg.model.backbone.arch = dict(widths=(64, 128, 192), depths=(1, 1, 1), heads=(1, 1, 1), kernels=(3,))
    write(cfg, config)
    cfg.work_dir, cfg.launcher = str(folder / 'work'), 'none'
    runner = runners.build_runner(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for parameter in runner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    runner.optim_wrapper.step()  # the optimizer has a state
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    runner.save_checkpoint(str(folder), 'epoch_1.pth', meta=dict(epoch=1, iter=2))
    return Tiny(config, folder / 'epoch_1.pth', runner)


@pytest.fixture
def tiny(tiny_runner: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Let commands use the runner that exists, and stop after loading."""
    runner = tiny_runner.runner
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}

    def build(cfg: Any, trust: bool = False) -> runners.CommandRunner:
        weights.use_safe_loader(trust)
        runner._load_from, runner._resume, runner._has_loaded = cfg.load_from, cfg.resume, False
        runner.load, runner.fit = weights.load_for_finetuning, None
        runner.train_loop._iter = runner.train_loop._epoch = 0
        return runner

    def load_only() -> dict[str, float]:
        runner.load_or_resume()
        return {}

    stops: dict[str, Callable] = {'train': load_only, 'test': load_only, 'val': dict}
    for name, stop in stops.items():
        monkeypatch.setattr(runner, name, stop)
    monkeypatch.setattr(runners, 'build_runner', build)
    monkeypatch.setattr('mmplugin.engine.result_tables.headline', lambda metrics: None)
    monkeypatch.setattr('mmplugin.engine.result_tables.details', lambda evaluator: [])
    monkeypatch.setattr('mmplugin.engine.result_tables.confusion_matrix', lambda evaluator: None)
    monkeypatch.setattr('mmplugin.engine.test.show', lambda tables, console: None)
    yield tiny_runner
    runner.model.load_state_dict(before)
