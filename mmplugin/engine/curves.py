"""What a run wrote about itself, and pictures of it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt

MEASURES = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'mask/segm_mAP', 'mask/segm_mAP_50', 'mIoU', 'mBIoU')
INK = '#888888'  # readable on light and dark pages alike


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Training and evaluation records of all runs in a work folder; of repeated steps the last one counts."""
    training, measured = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            if 'loss' in record:
                training[record['step']] = record
            elif any(name in record for name in MEASURES):
                measured[record['step']] = record
    return [training[step] for step in sorted(training)], [measured[step] for step in sorted(measured)]


def _png(figure: plt.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110, transparent=True, bbox_inches='tight')
    plt.close(figure)
    return buffer.getvalue()


def _axes(title: str, x_label: str) -> tuple[plt.Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    axes.set_title(title, color=INK, fontsize=11, loc='left')
    axes.set_xlabel(x_label, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ('left', 'bottom'))
        spine.set_color(INK)
    return figure, axes


def _legend(axes: plt.Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def loss_curve(training: Sequence[dict]) -> bytes | None:
    if len(training) < 2:
        return None
    figure, axes = _axes('Loss', 'iteration')
    steps = [record['step'] for record in training]
    names = sorted({name for record in training for name in record if 'loss' in name}, key=lambda name: name != 'loss')
    for name in names:
        values = [record.get(name, np.nan) for record in training]
        axes.plot(steps, values, label=name, linewidth=2.2 if name == 'loss' else 1.1)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _png(figure)


def measure_curve(measured: Sequence[dict], x_label: str) -> bytes | None:
    names = [name for name in MEASURES if any(name in record for record in measured)]
    if not names:
        return None
    figure, axes = _axes('Evaluation', x_label)
    for name in names:
        steps = [record['step'] for record in measured if name in record]
        values = [record[name] for record in measured if name in record]
        axes.plot(steps, values, marker='o', markersize=4, label=name.rsplit('/', 1)[-1].replace('mAP', 'AP'))
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)
    return _png(figure)


def confusion_picture(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """Rows are true classes, each scaled to 100 %; the names are left out where there are too many to read."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= 30
    side = 2.2 + 0.42 * len(classes) if few else 9
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    axes.set_title('Share of each true class (rows) found as (columns)', color=INK, fontsize=10, loc='left')
    axes.tick_params(colors=INK, length=0)
    if few:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha='right')
        axes.set_yticks(range(len(classes)), classes)
        for row, column in np.ndindex(*share.shape):
            if share[row, column] >= 0.005:
                ink = 'white' if share[row, column] > 0.5 else 'black'
                text = f'{100 * share[row, column]:.0f}'
                axes.text(column, row, text, ha='center', va='center', fontsize=8, color=ink)
    return _png(figure)
