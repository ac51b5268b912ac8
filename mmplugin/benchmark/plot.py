"""Plot published accuracy over measured latency."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Any, NamedTuple

from mmplugin.benchmark.published import ACCURACIES
from mmplugin.benchmark.results import Results, size_text
from mmplugin.errors import UserError

FAMILIES = {
    'evit': ('EfficientViT', '#0d9488'),
    'v2': ('EfficientFormerV2', '#4f46e5'),
    'v1': ('EfficientFormer', '#ea580c'),
}
OTHER_COLORS = ('#a21caf', '#4d7c0f', '#0369a1', '#78716c')
INK, GRID = '#334155', '#e9eef4'


class Point(NamedTuple):
    """One model. Points sort by family, then by accuracy."""

    family: str
    accuracy: float
    ms: float
    arch: str


def accuracy_of(published: Mapping[str, float], name: str | None = None) -> tuple[str, float] | None:
    """Return name and value of a published accuracy, the first one by default, or None if there is none."""
    name = name or next(iter(published), '')
    return (name, published[name]) if name in published else None


def frontier(points: Iterable[Point]) -> list[Point]:
    """Return the points that no faster point reaches, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def plot(
    results: Results,
    path: Path,
    accuracy: str | None = None,
    mode: str | None = None,
    lines: Mapping[str, float] | None = None,
) -> None:
    """Plot accuracy over the latency of inference, at the first size and batch, and shade what is below the frontier.

    Args:
        results: What was measured.
        path: File to write.
        accuracy: Name of the accuracy; by default, what fits each model.
        mode: Mode of inference; by default, the first one that was measured.
        lines: Latencies in ms to mark, by their names.
    """
    from matplotlib.figure import Figure

    records, published = results.of('infer'), {model.name: model.published for model in results.models}
    run = (records[0].size, records[0].batch, mode or records[0].mode) if records else None
    points: list[Point] = []
    labels: dict[str, None] = {}
    for record in records:
        found = accuracy_of(published[record.model], accuracy)
        if found and (record.size, record.batch, record.mode) == run and not record.is_baseline:
            family, _, arch = record.model.rpartition('_')
            points.append(Point(family, found[1], record.value, arch))
            labels[ACCURACIES[found[0]]] = None
    if run is None or not points:
        raise UserError('there is nothing to plot: no model with a published accuracy has a latency')
    figure = Figure(figsize=(8, 4.8))
    axes = figure.subplots()
    slowest, other_colors = max(points, key=lambda point: point.ms), cycle(OTHER_COLORS)
    for family, group in groupby(sorted(points), lambda point: point.family):
        series = list(group)
        title, color = FAMILIES.get(family) or (family, next(other_colors))
        _draw_family(axes, series, title, color, 'center' if slowest in series else 'right')
    conditions = size_text(run[0]), f'batch {run[1]}', run[2], results.meta['machine'], results.meta['date']
    _format_axes(axes, f'Latency in ms ({", ".join(conditions)})', ', '.join(labels))
    for name, ms in (lines or {}).items():
        _draw_line(axes, name, ms)
    _shade_frontier(axes, frontier(points))
    figure.savefig(path, dpi=160, bbox_inches='tight')


def _draw_family(axes: Any, series: Sequence[Point], title: str, color: str, align: str) -> None:
    """Draw a line through the points of a family; its archs stand next to them, its title above the last one."""
    style = dict(marker='o', color=color, linewidth=1.5, markersize=7, markeredgecolor='white')
    axes.plot([point.ms for point in series], [point.accuracy for point in series], **style)
    text = dict(textcoords='offset points', color=color)
    for point in series:
        axes.annotate(point.arch, (point.ms, point.accuracy), (6, -12), fontsize=9, **text)
    last = series[-1].ms, series[-1].accuracy
    axes.annotate(title, last, (0 if align == 'center' else -8, 8), ha=align, fontsize=11, weight='bold', **text)


def _format_axes(axes: Any, xlabel: str, ylabel: str) -> None:
    from matplotlib.ticker import LogLocator

    axes.set(xscale='log')
    axes.set_xlabel(xlabel, color=INK, labelpad=10)
    axes.set_ylabel(ylabel, color=INK, labelpad=8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('')
    axes.tick_params(colors=INK, which='both', length=0)
    axes.margins(0.1)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _draw_line(axes: Any, name: str, ms: float) -> None:
    axes.axvline(ms, color=INK, linewidth=1, linestyle='--' if name == 'target' else ':')
    style = dict(rotation=90, ha='right', va='top', color=INK, fontsize=9)
    top = axes.get_xaxis_transform()  # data along x, from 0 to 1 along y
    axes.annotate(f'{name} {ms:.3g} ms', (ms, 1), (-2, -2), xycoords=top, textcoords='offset points', **style)


def _shade_frontier(axes: Any, best: Sequence[Point]) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = [*(point.ms for point in best), right], [*(point.accuracy for point in best), best[-1].accuracy]
    axes.fill_between(x, y, bottom, step='post', color='#f4f7fa', linewidth=0, zorder=0)
    axes.set(xlim=(left, right), ylim=(bottom, top))
