"""Records of a training run, and plots of them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

METRICS = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50', 'mIoU', 'mBIoU')  # names without their prefix
INK = '#888888'  # readable on light and on dark pages
MAX_NAMES = 30  # a confusion matrix of more classes has no class names


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Return the training and validation records of all runs in a work folder; of repeated steps, the last one."""
    training: dict[int, dict] = {}
    validation: dict[int, dict] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            (training if 'loss' in record else validation)[record['step']] = record
    return [training[step] for step in sorted(training)], [validation[step] for step in sorted(validation)]


def png(figure: plt.Figure) -> bytes:
    """Return a figure as a PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110, transparent=True, bbox_inches='tight')
    plt.close(figure)
    return buffer.getvalue()


def new_axes(title: str, x_label: str) -> tuple[plt.Figure, plt.Axes]:
    """Return a figure with one plot, in the style of all curves."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    style_(axes, title, x_label)
    return figure, axes


def style_(axes: plt.Axes, title: str, x_label: str) -> None:
    """Give a plot the style of all curves."""
    axes.set_title(title, color=INK, fontsize=11, loc='left')
    axes.set_xlabel(x_label, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ('left', 'bottom'))
        spine.set_color(INK)


def add_legend(axes: plt.Axes) -> None:
    """Add the names of all lines."""
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def loss_curve(training: Sequence[dict]) -> bytes | None:
    """Plot all losses as a PNG; None for fewer than two records."""
    if len(training) < 2:
        return None
    figure, axes = new_axes('Loss', 'iteration')
    steps = [record['step'] for record in training]
    names = sorted({name for record in training for name in record if 'loss' in name}, key=lambda name: name != 'loss')
    for name in names:
        values = [record.get(name, np.nan) for record in training]
        axes.plot(steps, values, label=name, linewidth=2.2 if name == 'loss' else 1.1)
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return png(figure)


def metric_curve(validation: Sequence[dict], x_label: str) -> bytes | None:
    """Plot the ``METRICS`` that were measured as a PNG; None if there are none."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in METRICS}
    for record in validation:
        for key, value in record.items():
            name = key.rpartition('/')[2]
            if name in points:
                points[name].append((record['step'], value))
    points = {name: found for name, found in points.items() if found}
    if not points:
        return None
    figure, axes = new_axes('Validation', x_label)
    for name, found in points.items():
        axes.plot(*zip(*found, strict=True), marker='o', markersize=4, label=name.replace('mAP', 'AP'))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes)
    return png(figure)


def confusion_plot(matrix: np.ndarray, classes: Sequence[str], unit: str = 'Pixels') -> bytes:
    """Plot a confusion matrix as a PNG. Rows are true classes and sum to 100 %."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with_names = len(classes) <= MAX_NAMES
    side = 2.2 + 0.42 * len(classes) if with_names else 9
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    title = f'{unit} of each true class (row) by predicted class (column), %'
    axes.set_title(title, color=INK, fontsize=10, loc='left')
    axes.tick_params(colors=INK, length=0)
    if with_names:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha='right')
        axes.set_yticks(range(len(classes)), classes)
        for row, column in np.ndindex(*share.shape):
            if share[row, column] >= 0.005:
                ink = 'white' if share[row, column] > 0.5 else 'black'
                text = f'{100 * share[row, column]:.0f}'
                axes.text(column, row, text, ha='center', va='center', fontsize=8, color=ink)
    return png(figure)
