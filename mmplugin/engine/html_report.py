"""``report.html``: one file that shows a run, without a server or a network."""

import base64
import html
import os
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from rich.console import Console

from mmplugin import stack
from mmplugin.config_edits import is_segmentation
from mmplugin.engine import curves, result_tables
from mmplugin.errors import UserError
from mmplugin.evaluation.segmentation import SegmentationMetric
from mmplugin.hooks.draw import draw_sample
from mmplugin.tables import Table, show
from mmplugin.text import duration

PICTURES = 8
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #667; --line: #8884; --back: #fcfcfb; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e2; --soft: #9aa; --line: #8885; --back: #17181a; --card: #202225; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1060px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p { color: var(--soft); margin: .2rem 0; }
.figures, .tables { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.numbers div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem; }
.numbers b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--soft); font-weight: 500; }
img { max-width: 100%; border-radius: 4px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 1rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; overflow: auto;
  font-size: 12px; max-height: 30rem; }
"""


def _image(data: bytes | None, kind: str = 'png') -> str:
    return '' if data is None else f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="">'


def _table(grid: Table) -> str:
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in grid.head)
    rows = ''.join(
        '<tr>' + ''.join(f'<td>{html.escape(str(value))}</td>' for value in row) + '</tr>' for row in grid.rows
    )
    return f'<table><caption>{html.escape(grid.title)}</caption><tr>{head}</tr>{rows}</table>'


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
def pictures(model: Any, loader: Any, meta: dict, count: int = PICTURES) -> list[bytes]:
    """JPEGs of the first images of a loader, predictions beside the truth."""
    model = model.module if is_model_wrapper(model) else model
    model.eval()
    drawn: list[bytes] = []
    for batch in loader:
        for sample in model.test_step(batch):
            ok, code = cv2.imencode('.jpg', draw_sample(sample, meta), [cv2.IMWRITE_JPEG_QUALITY, 90])
            if ok:
                drawn.append(code.tobytes())
        if len(drawn) >= count:
            break
    return drawn[:count]


def page(title: str, lines: Sequence[str], found: Sequence[Table], parts: Sequence[tuple[str, str]]) -> str:
    numbers = ''.join(f'<div><b>{value}</b><span>{name}</span></div>' for name, value in found[0].rows)
    body = ''.join(f'<h2>{heading}</h2>{content}' for heading, content in parts if content)
    said = ''.join(f'<p>{html.escape(line)}</p>' for line in lines)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f'<style>{STYLE}</style><h1>{html.escape(title)}</h1>{said}<div class="numbers">{numbers}</div>{body}</html>'
    )


def write_report(runner: Runner, seconds: float | None = None) -> Path:
    """After training: the last evaluation's numbers, the curves and some pictures, as ``report.html``.

    Args:
        runner: One that has trained and evaluated.
        seconds: How long that took.
    """
    cfg = runner.cfg
    training, measured = curves.read_scalars(runner.work_dir)
    evaluator, loader = runner.val_loop.evaluator, runner.val_dataloader
    meta = loader.dataset.metainfo
    if not measured:
        raise UserError(f'{runner.work_dir} holds no evaluation to report: let train_cfg.val_interval divide the run')
    found = result_tables.result_tables(measured[-1], evaluator, meta['classes'])
    extra = ''
    for metric in evaluator.metrics:
        if isinstance(metric, SegmentationMetric):
            extra = _image(curves.confusion_picture(metric.matrix, meta['classes']))
    drawn = ''.join(_image(picture, 'jpeg') for picture in pictures(runner.model, loader, meta))
    plots = _image(curves.loss_curve(training)) + _image(
        curves.measure_curve(measured, 'iteration' if is_segmentation(cfg) else 'epoch')
    )
    arch = f'{cfg.model.backbone.type} {cfg.model.backbone.get("arch", "")}'.strip()
    said = [f'{cfg.model.type} on {arch}, {time.strftime("%Y-%m-%d %H:%M")}']
    if seconds is not None:
        said.append(f'Training and evaluation took {duration(seconds)}; {len(loader.dataset)} images evaluated.')
    parts = [
        ('Curves', f'<div class="figures">{plots}</div>'),
        ('Predictions beside the truth', f'<div class="pictures">{drawn}</div>'),
        ('In detail', f'<div class="tables">{"".join(_table(grid) for grid in found[1:])}</div>'),
        ('Confusion', extra),
        ('Set-up', _table(_versions())),
        ('Config', f'<pre>{html.escape(cfg.pretty_text)}</pre>'),
    ]
    name = Path(cfg.get('filename') or runner.work_dir).stem
    target = Path(runner.work_dir) / 'report.html'
    target.write_text(page(name, said, found, parts), encoding='utf-8')
    console = Console(highlight=False)
    show(found, console)
    console.print(f'Report: {target}', soft_wrap=True)
    return target
