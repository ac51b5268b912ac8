"""What was measured, as tables for a screen, a page or a program, and as a picture."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from mmplugin.benchmark.subjects import ACCURACIES
from mmplugin.errors import UserError
from mmplugin.tables import Table, show

BEGIN, END = '<!-- benchmark: begin -->', '<!-- benchmark: end -->'
MIB = 2**20
# Upper limits against timm, eager, on a CPU at 512x512: training with frozen norms at batch 2, inference at batch 1
GOALS = {
    'kept': (0.6, 'bytes kept for backward'),
    'step': (0.95, 'training step'),
    'eager': (1.0, 'inference, eager'),
    'fused': (0.7, 'inference, fused'),
    'fused+compiled': (0.45, 'inference, fused+compiled'),
}
STRICTER = {'v2_s2': {'kept': 0.5, 'step': 0.85}}
PROFILED = 12  # operators of a training step that are listed
GROWTH_GOAL = 1.3  # memory may grow by this much more than the number of pixels


@dataclass
class Results:
    """Flat records; ``json`` writes them as they are."""

    meta: dict
    models: list[dict] = field(default_factory=list)
    inference: list[dict] = field(default_factory=list)
    training: list[dict] = field(default_factory=list)
    memory: list[dict] = field(default_factory=list)
    profile: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self), indent=1) + '\n', encoding='utf-8')


@dataclass
class Mes:
    """EfficientFormerV2's Mobile Efficiency Score, its equation 7, with the paper's values.

    Units are the size and the speed of MobileNetV2: 3 million parameters and 1 ms on an iPhone 12.
    """

    score: float = 100.0
    size_unit: float = 3.0
    latency_unit: float = 1.0
    size_alpha: float = 0.5
    latency_alpha: float = 1.0

    def __call__(self, million_parameters: float, latency_ms: float) -> float:
        size = (million_parameters / self.size_unit) ** -self.size_alpha
        return self.score * size * (latency_ms / self.latency_unit) ** -self.latency_alpha


def _size(size: Sequence[int]) -> str:
    return f'{size[0]}x{size[1]}'


def _ratio(ratio: dict | None) -> str:
    return '' if ratio is None else f'{ratio["median"]:.2f} ({ratio["low"]:.2f}-{ratio["high"]:.2f})'


def _time(value: dict) -> str:
    return f'{value["median"]:.1f}'


def tables(results: Results) -> list[Table]:
    """One table a question; those that were not asked have no rows and are left out."""
    other = results.meta['beside']
    against = [f'x {other} (quartiles)'] if other else []
    plain = [f'x {other}'] if other else []

    def beside(*cells: str) -> list[str]:
        return list(cells) if other else []

    accuracies = [name for name in ACCURACIES if any(name in record['published'] for record in results.models)]
    models = Table(
        'Size',
        ('model', 'kind', 'parameters M', 'GMACs', *(f'published {name}' for name in accuracies)),
        [
            (
                record['name'],
                record['kind'],
                f'{record["parameters"] / 1e6:.2f}',
                ', '.join(f'{count / 1e9:.3g} at {size}' for size, count in record['macs'].items()),
                *(str(record['published'].get(name, '')) for name in accuracies),
            )
            for record in results.models
        ],
    )
    inference = Table(
        'Inference',
        ('model', 'size', 'batch', 'mode', 'ms', 'images/s', *against, 'MES'),
        [
            (
                record['name'],
                _size(record['size']),
                str(record['batch']),
                record['mode'],
                _time(record['ms']),
                f'{record["images_per_second"]:.1f}',
                *beside(_ratio(record['ratio'])),
                f'{record["mes"]:.3g}',
            )
            for record in results.inference
        ],
    )
    training = Table(
        'Training: forward and backward',
        ('model', 'size', 'batch', 'step ms', *against, 'kept MiB', *plain),
        [
            (
                record['name'],
                _size(record['size']),
                str(record['batch']),
                _time(record['ms']) if record['ms'] else '',
                *beside(_ratio(record['ratio'])),
                f'{record["kept"] / MIB:.0f}' if record['kept'] is not None else '',
                *beside(f'{record["kept_ratio"]:.2f}' if record['kept_ratio'] else ''),
            )
            for record in results.training
        ],
    )
    memory = Table(
        'Peak memory of inference, beyond the loaded model',
        ('model', 'size', 'batch', 'mode', 'peak MiB', *plain, 'growth by pixel'),
        [
            (
                record['name'],
                _size(record['size']),
                str(record['batch']),
                record['mode'],
                f'{record["peak"] / MIB:.0f}',
                *beside(f'{record["ratio"]:.2f}' if record['ratio'] else ''),
                f'{record["growth"]:.2f}' if record['growth'] else '',
            )
            for record in results.memory
        ],
    )
    profile = Table(
        "A training step's operators, by their share of the time",
        ('model', 'size', 'batch', 'operator', 'calls', 'share'),
        [
            (
                record['name'],
                _size(record['size']),
                str(record['batch']),
                record['operator'],
                str(record['calls']),
                f'{record["share"]:.1%}',
            )
            for record in results.profile
        ],
    )
    return [table for table in (models, inference, training, memory, profile) if table.rows]


def print_results(results: Results, console: Console) -> None:
    show(tables(results), console)
    for line in closing_lines(results):
        console.print(line, soft_wrap=True, markup=False)


def closing_lines(results: Results) -> list[str]:
    meta = results.meta
    unit = meta['mes']
    lines = [
        f'Measured {meta["date"]} on {meta["machine"]}, {meta["threads"]} threads, torch {meta["torch"]}, '
        f'{meta["device"]}; {meta["rounds"]} rounds or more, clock: {meta["clock"]}. Times are medians over the '
        'rounds, ratios medians of the ratios within a round.',
    ]
    if results.inference:
        lines.append(
            f'MES: score {unit["score"]:g}, units {unit["size_unit"]:g} M parameters and {unit["latency_unit"]:g} ms, '
            f'exponents {unit["size_alpha"]:g} and {unit["latency_alpha"]:g}. Compare it within this table only: its '
            "latency is this machine's, and its parameters are those of the model that was measured."
        )
    missed = goals_missed(results)
    if missed is not None:
        lines.append('Goals missed: ' + '; '.join(missed) + '.' if missed else 'Goals missed: none.')
    return lines + results.notes


def goals_missed(results: Results) -> list[str] | None:
    """Every measured goal that was not reached; None where nothing was measured under the goals' conditions."""
    meta, checked, missed = results.meta, 0, []

    def look(name: str, what: str, value: float | None) -> None:
        nonlocal checked
        if what not in GOALS or value is None:
            return
        limit, label = GOALS[what]
        limit = STRICTER.get(name, {}).get(what, limit)
        checked += 1
        if value > limit:
            missed.append(f'{name} {label} {value:.3g} (goal {limit})')  # 0.451 is no 0.45

    if meta['beside'] == 'timm' and meta['device'] == 'cpu' and meta['beside_mode'] == 'eager':
        for record in results.inference:
            if list(record['size']) == [512, 512] and record['batch'] == 1 and record['ratio']:
                look(record['name'], record['mode'], record['ratio']['median'])
        for record in results.training:
            if list(record['size']) == [512, 512] and record['batch'] == 2 and meta['norms'] == 'frozen':
                look(record['name'], 'step', record['ratio'] and record['ratio']['median'])
                look(record['name'], 'kept', record['kept_ratio'])
    for record in results.memory:
        if record['growth'] and list(record['size']) == [2048, 2048] and record['growth_from'] == [512, 512]:
            checked += 1
            if record['growth'] > GROWTH_GOAL:
                missed.append(f'{record["name"]} memory per pixel x{record["growth"]:.2f} (goal {GROWTH_GOAL})')
    return missed if checked else None


def markdown(results: Results, command: str) -> str:
    parts = [BEGIN, f'Made by\n\n```\n{command}\n```']
    for table in tables(results):
        parts.append(f'### {table.title}\n\n{table.markdown()}')
    return '\n\n'.join([*parts, *closing_lines(results), END])


def check_page(path: Path) -> None:
    """Looks for the markers before anything is measured."""
    if not path.is_file() or not re.search(f'(?s){BEGIN}.*{END}', path.read_text(encoding='utf-8')):
        raise UserError(f'--write {path}: the file must hold the lines {BEGIN} and {END}; the tables go between them')


def write_page(path: Path, results: Results, command: str) -> None:
    check_page(path)
    text = re.sub(f'(?s){BEGIN}.*{END}', lambda _: markdown(results, command), path.read_text(encoding='utf-8'))
    path.write_text(text, encoding='utf-8')


def plot(results: Results, path: Path, accuracy: str | None) -> None:
    """Published accuracy over measured latency: a point a model, a marker a mode."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    points = _points(results, accuracy)
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    series = list(dict.fromkeys((family, mode) for family, mode, *_ in points))
    families, modes = (list(dict.fromkeys(names)) for names in zip(*series, strict=True))
    for family, mode in series:
        mine = sorted((ms, value, name) for *key, ms, value, name in points if key == [family, mode])
        colour, marker = f'C{families.index(family)}', 'os^Dvpx*'[modes.index(mode) % 8]
        x, y = [ms for ms, *_ in mine], [value for _, value, _ in mine]
        axes.plot(x, y, marker=marker, color=colour, label=f'{family} {mode}', alpha=0.85, linewidth=1)
        if mode == modes[0]:
            for ms, value, name in mine:
                axes.annotate(name, (ms, value), textcoords='offset points', xytext=(6, -11), fontsize=8)
    kinds = sorted({_accuracy_of(record, accuracy) for record in results.models if _accuracy_of(record, accuracy)})
    meta = results.meta
    latency = f'ms per batch, {meta["clock"]} clock, {meta["device"]}'
    axes.set(xscale='log', xlabel=latency, ylabel='published ' + ', '.join(kinds))
    axes.set_title(f'{meta["machine"]}, {meta["threads"]} threads, {meta["date"]}', fontsize=10, loc='left')
    axes.grid(which='both', alpha=0.25)
    axes.margins(0.14)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('')
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches='tight')


def _accuracy_of(record: dict, accuracy: str | None) -> str | None:
    name = accuracy or record['accuracy']
    return name if name in record['published'] else None


def _points(results: Results, accuracy: str | None) -> list[tuple[str, str, float, float, str]]:
    """Family, mode, milliseconds, accuracy, name; of the first size and batch only."""
    models = {record['name']: record for record in results.models}
    ours = [record for record in results.inference if record['name'] in models]
    points = []
    for record in ours:
        model, first = models[record['name']], ours[0]
        kind = _accuracy_of(model, accuracy)
        if kind and (record['size'], record['batch']) == (first['size'], first['batch']):
            name = record['name']
            measured = record['mode'], record['ms']['median'], model['published'][kind]
            points.append((name.rpartition('_')[0], *measured, name))
    return points
