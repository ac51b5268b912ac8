"""What the parts of search_proof.py share: results that are kept, and the task that networks are trained for."""

import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from mmplugin import stack
from mmplugin.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'work_dirs/search_proof'
CONFIG = 'semfpn_v2_s0'
SEEDS, IMAGES = (0, 1, 2), 64
console = Console(highlight=False, soft_wrap=True)


def kept(name: str, compute: Callable[[], Any]) -> Any:
    """Return a result from the last call of the script, or compute and keep it."""
    path = FOLDER / f'{name.replace(" ", "_")}.json'
    if not path.is_file():
        console.print(f'{name} ...')
        content = compute()
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(content), encoding='utf-8')
    return json.loads(path.read_text(encoding='utf-8'))


def kept_all(jobs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return many results as ``kept`` does; processes of one thread, one for each core, compute those that are missing.

    Args:
        jobs: Name of each result and what computes it; a function of a module or a ``functools.partial`` of one.
    """
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)),
        multiprocessing.get_context('spawn'),
        use_one_thread,
    ) as pool:
        futures = [pool.submit(kept, name, compute) for name, compute in jobs.items()]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: kept(name, compute) for name, compute in jobs.items()}


def use_one_thread() -> None:
    """Let torch use one thread in this process."""
    import torch

    stack.ignore_known_warnings()
    torch.set_num_threads(1)


def verdict(holds: bool) -> str:
    """Return how a claim is printed."""
    return 'holds' if holds else '**FAILED**'


def make_task(seed: int, arch: Any = None, crop: int | None = None, config: str = CONFIG) -> Any:
    """Return the task of the proof, which starts from random weights.

    Args:
        seed: Seed of weights and data.
        arch: Arch of the backbone; that of the config by default.
        crop: Side of the training crops; that of the config by default.
        config: Name of the config.
    """
    from mmplugin.engine.config import load_config
    from mmplugin.hooks.layer_scale import FROM_SCRATCH, set_layer_scales_
    from mmplugin.search.task import Task

    cfg = load_config(config, mini=True, data_root=ROOT / 'data')
    cfg.model.backbone.init_cfg = None
    if arch is not None:
        cfg.model.backbone.arch = arch
        cfg.model.neck.in_channels = list(arch['widths'])[-len(cfg.model.neck.in_channels) :]
    if crop:
        cfg.model.data_preprocessor.size = (crop, crop)
        for step in cfg.train_dataloader.dataset.pipeline:
            if step['type'] == 'RandomCrop':
                step['crop_size'] = (crop, crop)
    task = Task(cfg, IMAGES, seed)
    set_layer_scales_(task.model.backbone, FROM_SCRATCH)
    return task


def threads_of_one() -> AbstractContextManager[None]:
    """Let torch use one thread: processor time counts the waiting of others."""
    from mmplugin.search.timing import threads_set

    return threads_set(1)


def relative_latency(family: str, start: Any, archs: dict[str, Any], size: Any, rounds: int) -> dict[str, float]:
    """Return the latency of backbones that run in turn, each divided by that of the start."""
    import torch

    from mmplugin.search.timing import Network, run_in_turn

    x = torch.randn(1, 3, *size)
    networks = [Network(family, arch, x, 'fused', 'cpu', False) for arch in (start, *archs.values())]
    with threads_of_one():
        own, *others = ([ms for (ms,) in times] for times in run_in_turn(networks, rounds, 0, None))
    return {
        name: statistics.median(a / b for a, b in zip(times, own, strict=True))
        for name, times in zip(archs, others, strict=True)
    }
