"""``report.html``: a training run in one file, readable without a server or a network."""

import os
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from rich.console import Console

from mmplugin import stack
from mmplugin.config_edits import is_classification
from mmplugin.engine import curves
from mmplugin.engine.page import template
from mmplugin.engine.result_tables import confusion_matrix, details, headline
from mmplugin.errors import UserError
from mmplugin.hooks.draw import draw_sample
from mmplugin.tables import Table, show
from mmplugin.text import duration

IMAGES = 8
UNITS = ('Pixels', 'Images')  # that a confusion matrix counts
PICTURES = ('Ground truth (left) and prediction (right)', 'True and predicted class, mistakes first')


def _versions() -> Table:
    names = ['mmplugin', 'torch', 'numpy', *(name for name, _ in stack.current().pins.values())]
    rows = []
    for name in names:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, 'not installed as a package'))
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{os.cpu_count()} CPU cores'
    return Table('Versions', ('package', 'version'), [*rows, ('machine', machine)])


@torch.no_grad()
def example_images(runner: Runner, model: BaseModel, batches: Iterable, count: int = IMAGES) -> list[bytes]:
    """Return JPEGs of the first images, or of chosen ones in classification, with ground truth and prediction."""
    model.eval()
    if is_classification(runner.cfg):
        from mmplugin.classification.pictures import chosen_samples

        samples: Iterable = chosen_samples(runner, model, count)
    else:
        samples = islice(chain.from_iterable(model.test_step(batch) for batch in batches), count)
    with TemporaryDirectory() as folder:
        paths = []
        for i, sample in enumerate(samples):
            paths.append(Path(folder, f'{i}.jpg'))
            draw_sample(runner.visualizer, sample, paths[-1])
        return [path.read_bytes() for path in paths if path.is_file()]  # none if the visualizer draws no samples


def write_report(runner: Runner, seconds: float | None = None) -> Path:
    """Print the results of a training run, and write them with curves and images to ``report.html``.

    Args:
        runner: A runner after training and validation.
        seconds: The duration of both.

    Returns:
        The path of the report.
    """
    cfg = runner.cfg
    training, validation = curves.read_scalars(runner.work_dir)
    if not validation:
        raise UserError(f'{runner.work_dir} has no validation results: set train_cfg.val_interval to a part of the run')
    evaluator, loader = runner.val_loop.evaluator, runner.val_dataloader
    result, tables = headline(validation[-1]), details(evaluator)
    matrix, classes = confusion_matrix(evaluator), loader.dataset.metainfo['classes']
    arch = f'{cfg.model.backbone.type} {cfg.model.backbone.get("arch", "")}'.strip()
    subtitles = [f'{cfg.model.type} with {arch}, {time.strftime("%Y-%m-%d %H:%M")}']
    if seconds is not None:
        subtitles.append(f'Training and validation took {duration(seconds)}. Validation images: {len(loader.dataset)}.')
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    plots = {
        'loss': curves.loss_curve(training),
        'metrics': curves.metric_curve(validation, 'epoch' if 'max_epochs' in cfg.train_cfg else 'iteration'),
    }
    page = template(Path(__file__).with_name('report.html')).render(
        title=Path(cfg.filename or runner.work_dir).stem,
        subtitles=subtitles,
        headline=result,
        plots={name: plot for name, plot in plots.items() if plot},
        images=example_images(runner, model, loader),
        tables=tables,
        pictures=PICTURES[is_classification(cfg)],
        confusion=None if matrix is None else curves.confusion_plot(matrix, classes, UNITS[is_classification(cfg)]),
        versions=_versions(),
        config=cfg.pretty_text,
    )
    target = Path(runner.work_dir) / 'report.html'
    target.write_text(page, encoding='utf-8')
    console = Console(highlight=False)
    show([result, *tables], console)
    console.print(f'Report: {target}', soft_wrap=True)
    return target
