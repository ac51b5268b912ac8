"""``report.html`` of a search: its path, what is kept by layer, and under which conditions it was measured."""

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from mmplugin.benchmark.results import size_text
from mmplugin.benchmark.sizes import deployed_parameters
from mmplugin.engine.curves import INK, add_legend, new_axes, png, style_
from mmplugin.engine.page import template
from mmplugin.files import atomic_write
from mmplugin.search.budget import Budget, Figures
from mmplugin.search.conditions import processor_name
from mmplugin.search.result import Result
from mmplugin.search.space import KINDS, kind_of, sizes_of
from mmplugin.search.subnet import family_of
from mmplugin.tables import Table

COLOR, TARGET = '#4f46e5', '#ea580c'
NAMES = KINDS | {'ratio': KINDS['hidden'], 'attention': 'blocks with attention'}
COLUMNS = 2  # of the plots of what is kept
Kept = dict[str, tuple[int, int]]  # size: how much is kept of how much


@dataclass
class SearchReport:
    """What a report shows.

    Args:
        title: Heading, such as the name of the config.
        summary: The result in one sentence.
        headline: The most important figures, by their names.
        trace: A record per network: ``measured`` and ``loss``; after the start also ``number``, ``cost`` (predicted
            latency), ``pruned_loss`` and ``actions``. Latencies are in milliseconds.
        target_ms: Latency to reach, if there is a target.
        published: Milliseconds of published networks, by prediction.
        kept: For each size, such as ``hidden.2.0``, how much is kept of how much.
        arch: The arch that was found.
        command: Command line.
        conditions: Machine, date and the like.
    """

    title: str
    summary: str
    headline: Mapping[str, str]
    trace: Sequence[Mapping[str, Any]]
    target_ms: float | None
    published: Mapping[str, float]
    kept: Mapping[str, tuple[int, int]]
    arch: Mapping[str, Any]
    command: str
    conditions: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, report: SearchReport) -> None:
    """Write a report as one file that needs no network."""
    page = template(Path(__file__).with_name('report.html')).render(
        title=report.title,
        subtitles=[report.summary],
        headline=Table('', ('name', 'value'), list(report.headline.items())),
        path=path_plot(report.trace, report.target_ms, report.published),
        prediction=prediction_plot(report.trace),
        kept=kept_plot(report.kept),
        rounds=rounds_table(report.trace),
        conditions=Table('Conditions', ('', ''), list(report.conditions.items())),
        command=report.command,
        arch=json.dumps(report.arch),
    )
    with atomic_write(path) as draft:
        draft.write_text(page, encoding='utf-8')


def prune_report(
    result: Result,
    options: argparse.Namespace,
    budget: Budget,
    published: Mapping[str, Mapping[str, float]],
    kept: Mapping[str, tuple[int, int]] | None = None,
) -> SearchReport:
    """Return the report of a search.

    Args:
        result: What the search found.
        options: Command line.
        budget: Its shares are those of the start, the first record of the trace.
        published: Predicted costs of published networks.
        kept: For each size, how much is kept of how much; it follows from the actions of a pruning if None.
    """
    start, end = result.trace[0], result.trace[-1]
    figures = Figures(start['measured'], 0, 0, 0)  # shares of the others are not shown
    size = size_text(options.size)
    backbone = result.model.backbone
    return SearchReport(
        title=Path(result.cfg.filename or 'search').stem,
        summary=result.summary,
        headline={
            'ms': f'{end["measured"]:.1f}',
            'ms, start': f'{start["measured"]:.1f}',
            'loss': f'{end["loss"]:.3f}',
            'loss, start': f'{start["loss"]:.3f}',
            'M parameters of the backbone as deployed': f'{deployed_parameters(backbone) / 1e6:.2f}',
        },
        trace=result.trace,
        target_ms=budget.of_start(figures).limits().get('latency_ms'),
        published={name: costs['latency_ms'] for name, costs in published.items() if 'latency_ms' in costs},
        kept=kept_by_layer(family_of(backbone), start['arch'], result.trace[1:]) if kept is None else kept,
        arch=result.arch,
        command=getattr(options, 'command', ''),
        conditions={
            'date': datetime.date.today().isoformat(),
            'machine': processor_name(options.device),
            'latency of': f'the {options.of} at {size}, batch {options.batch}, {options.mode}',
            'device': options.device,
            'threads': str(options.threads or torch.get_num_threads()),
            'torch': torch.__version__,
            'clock': options.clock,
            'seed': str(options.seed),
        },
    )


def rounds_table(trace: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of all networks on the path. The first one is the start."""
    rows = []
    for record in trace:
        kinds = dict.fromkeys(NAMES[kind_of(action['size'])] for action in record.get('actions', ()))
        rows.append((
            str(record['number']) if record['number'] else 'start',
            f'{record["measured"]:.1f}' if record.get('measured') else '',
            f'{record["cost"]:.1f}' if 'cost' in record else '',
            f'{record["pruned_loss"]:.4f}' if 'pruned_loss' in record else '',
            f'{record["loss"]:.4f}',
            str(len(record['actions'])) if 'actions' in record else '',
            ', '.join(kinds),
        ))  # fmt: skip
    head = ('round', 'ms', 'predicted ms', 'loss after removal', 'loss', 'groups removed', 'of')
    return Table('Rounds', head, rows, left=('of',))


def kept_by_layer(family: str, start: str | dict, trace: Sequence[Mapping[str, Any]]) -> Kept:
    """Return what is kept of each size of the start, and of the number of blocks of each stage.

    A removed block keeps nothing. Names are those of the start: they do not shift when a block before them is removed.

    Args:
        family: 'v1', 'v2' or 'evit'.
        start: The arch before the search.
        trace: Records with ``actions``, each with ``size`` (by the blocks that were left then) and ``after``.
    """
    before = sizes_of(family, start)
    now = dict(before)
    blocks: dict[str, list[str]] = {}  # those that are left in each stage
    for size in before:
        if kind_of(size) == 'block':
            _, stage, block = size.split('.')
            blocks.setdefault(stage, []).append(block)
    for record in trace:
        names = {f'{stage}.{i}': f'{stage}.{block}' for stage, left in blocks.items() for i, block in enumerate(left)}
        for action in record.get('actions', ()):
            kind, _, place = action['size'].partition('.')
            name = f'{kind}.{names[place]}' if kind in ('block', 'hidden') else action['size']
            now[name] = action['after']
        blocks = {stage: [b for b in left if now[f'block.{stage}.{b}']] for stage, left in blocks.items()}
    kept = {}
    for size, most in before.items():
        kind, _, place = size.partition('.')
        if kind != 'block':
            gone = kind == 'hidden' and not now[f'block.{place}']
            kept[size] = (0 if gone else now[size], most)
    total = {stage: sum(size.startswith(f'block.{stage}.') for size in before) for stage in blocks}
    return kept | {f'block.{stage}': (len(left), total[stage]) for stage, left in blocks.items()}


def path_plot(
    trace: Sequence[Mapping[str, Any]], target_ms: float | None, published: Mapping[str, float] = MappingProxyType({})
) -> bytes:
    """Plot loss over latency, with a line at the target, and marks at the latencies of published networks.

    Networks that were not measured have their predicted latency; without a prediction, they are omitted.
    """
    figure, axes = new_axes('Loss over latency', 'ms')
    latencies = [record.get('measured') or record.get('cost') for record in trace]
    found = [
        (ms, record.get('supernet_loss', record['loss'])) for ms, record in zip(latencies, trace, strict=True) if ms
    ]
    ms, losses = zip(*found, strict=True)
    axes.plot(ms, losses, marker='o', color=COLOR, label='path of the search')
    for name, i in {'start': 0, 'result': len(found) - 1}.items():
        if name == 'start' or i:
            place = (ms[i], losses[i])
            axes.annotate(name, place, (0, 8), textcoords='offset points', ha='center', color=INK, fontsize=9)
    if target_ms is not None:
        axes.axvline(target_ms, color=TARGET, linestyle='--', linewidth=1.4, label=f'target {target_ms:.3g} ms')
    for name, predicted in published.items():  # they were not trained here: a place on the axis, but no loss
        axes.plot([predicted], [0], marker='^', color=INK, transform=axes.get_xaxis_transform(), clip_on=False)
        axes.annotate(
            name, (predicted, 0), (4, 4), xycoords=axes.get_xaxis_transform(), textcoords='offset points', color=INK,
            fontsize=8, rotation=90, va='bottom',
        )  # fmt: skip
    axes.margins(0.12)
    axes.set_ylabel('loss', color=INK)
    add_legend(axes)
    return png(figure)


def prediction_plot(trace: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Plot measured over predicted latency of all rounds; None if nothing was predicted."""
    pairs = [(record['cost'], record['measured']) for record in trace if record.get('cost') and record.get('measured')]
    if not pairs:
        return None
    figure, axes = new_axes('Measured over predicted latency', 'predicted ms')
    ends = [min(map(min, pairs)), max(map(max, pairs))]
    axes.plot(ends, ends, color=INK, linewidth=1, label='equal')
    axes.scatter(*zip(*pairs, strict=True), color=COLOR, zorder=3, label='after a round')
    axes.set_ylabel('measured ms', color=INK)
    add_legend(axes)
    return png(figure)


def kept_plot(kept: Mapping[str, tuple[int, int]]) -> bytes | None:
    """Plot bars of what is kept of each size, one plot per kind; None if there is nothing to show."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    for size, counts in kept.items():
        kind, _, place = size.partition('.')
        title = NAMES[kind] + (' around downsampling' if kind == 'downsample' else '')
        panel, name = (title, place) if place else ('each head', title)
        groups.setdefault(panel, {})[name] = counts
    if not groups:
        return None
    height = -(-len(groups) // COLUMNS)
    figure, grid = plt.subplots(height, COLUMNS, figsize=(12.8, 2.6 * height), squeeze=False, layout='constrained')
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (title, group) in zip(grid.flat, groups.items(), strict=False):
        style_(axes, title.capitalize(), '')
        _draw_bars(axes, group)
    return png(figure)


def _draw_bars(axes: Any, group: Mapping[str, tuple[int, int]]) -> None:
    places = range(len(group))
    axes.bar(places, [most for _, most in group.values()], color=INK, alpha=0.25)
    axes.bar(places, [left for left, _ in group.values()], color=COLOR)
    for place, (left, most) in zip(places, group.values(), strict=True):
        axes.text(place, most, f'{left}' if left < most else '', ha='center', va='bottom', color=INK, fontsize=7)
    axes.set_xlim(-0.6, max(len(group), 4) - 0.4)
    axes.set_xticks(places, list(group), fontsize=7, rotation=90 if len(group) > 16 else 0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(visible=False, axis='x')
    axes.margins(y=0.15)
