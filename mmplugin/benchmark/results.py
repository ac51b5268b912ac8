"""What a benchmark found, and how it is written: JSON and tables."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmplugin.benchmark.published import ACCURACIES
from mmplugin.files import atomic_write
from mmplugin.tables import Table

MIB = 2**20
MES_UNITS = (3.0, 1.0)  # the paper's: MobileNetV2's million parameters, and its milliseconds on an iPhone 12
Size = Sequence[int]  # height, width
Columns = dict[str, Callable[[Any], str]]  # head: cell of a record


@dataclass
class Measurement:
    """One figure of one model. Times are medians over the rounds, ratios medians of the ratios within a round."""

    metric: str  # infer, train, saved or peak
    model: str
    size: Size
    batch: int
    mode: str
    value: float  # milliseconds (infer, train) or bytes (saved, peak)
    low: float | None = None  # lower and upper quartile
    high: float | None = None
    ratio: float | None = None  # to the baseline
    ratio_low: float | None = None
    ratio_high: float | None = None
    is_baseline: bool = False


@dataclass
class OperatorShare:
    """An operator's share of the time of one training step."""

    model: str
    size: Size
    batch: int
    operator: str
    calls: int
    share: float


@dataclass
class Model:
    """What is known of a model before it runs. ``gmacs`` maps sizes such as ``512x512`` to counts."""

    name: str
    kind: str
    parameters: int
    gmacs: dict[str, float] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    """All records of one run. ``meta`` holds its conditions: date, machine, command, ..."""

    meta: dict[str, Any]
    models: list[Model] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    profile: list[OperatorShare] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, metric: str) -> list[Measurement]:
        """Return the measurements of one metric."""
        return [record for record in self.measurements if record.metric == metric]

    def write_json(self, path: Path) -> None:
        """Write everything to a file."""
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + '\n', encoding='utf-8')

    @classmethod
    def from_json(cls, path: Path) -> 'Results':
        """Read what ``write_json`` wrote."""
        content = json.loads(path.read_text(encoding='utf-8'))
        for name, kind in dict(models=Model, measurements=Measurement, profile=OperatorShare).items():
            content[name] = [kind(**record) for record in content[name]]
        return cls(**content)


def mes(million_parameters: float, ms: float, units: Sequence[float] = MES_UNITS) -> float:
    """Return the Mobile Efficiency Score of EfficientFormerV2, equation 7."""
    return 100 * (million_parameters / units[0]) ** -0.5 * (ms / units[1]) ** -1


def size_text(size: Size) -> str:
    """Return height x width."""
    return f'{size[0]}x{size[1]}'


def _published(accuracy: str, model: Model) -> str:
    return str(model.published.get(accuracy, ''))


TITLES = {
    'infer': 'Inference',
    'train': 'Training step: forward and backward',
    'saved': 'Memory saved for backward',
    'peak': 'Peak memory of inference',
}
MODEL: Columns = {
    'model': lambda model: model.name,
    'kind': lambda model: model.kind,
    'parameters M': lambda model: f'{model.parameters / 1e6:.2f}',
    'GMACs': lambda model: ', '.join(f'{count:.3g} at {size}' for size, count in model.gmacs.items()),
    **{f'published {name}': partial(_published, name) for name in ACCURACIES},
}
RUN: Columns = {
    'model': lambda record: record.model,
    'size': lambda record: size_text(record.size),
    'batch': lambda record: str(record.batch),
}
OPERATOR: Columns = {
    'operator': lambda record: record.operator,
    'calls': lambda record: str(record.calls),
    'share': lambda record: f'{record.share:.1%}',
}


def tables(results: Results) -> list[Table]:
    """Return one table per metric that was measured. Columns without any value are omitted."""
    millions, units = {model.name: model.parameters / 1e6 for model in results.models}, results.meta['mes_units']
    mode: Columns = {'mode': lambda record: record.mode}
    ratio: Columns = {f'x {results.meta["baseline"]}': _ratio}
    time: Columns = {'ms': lambda record: f'{record.value:.1f}', **ratio}
    memory: Columns = {'MiB': lambda record: f'{record.value / MIB:.0f}', **ratio}
    speed: Columns = {
        'images/s': lambda record: f'{record.batch * 1e3 / record.value:.1f}',
        'MES': lambda record: f'{mes(millions[record.model], record.value / record.batch, units):.3g}',
    }
    pixel: Columns = {'bytes/pixel': lambda record: f'{record.value / record.batch / math.prod(record.size):.0f}'}
    columns = dict(infer=mode | time | speed, train=time, saved=memory, peak=mode | memory | pixel)
    measured = [_table(title, RUN | columns[metric], results.of(metric)) for metric, title in TITLES.items()]
    profile = _table('Operators of a training step', RUN | OPERATOR, results.profile)
    return [table for table in (_table('Models', MODEL, results.models), *measured, profile) if table.rows]


def _ratio(record: Measurement) -> str:
    if record.ratio is None:
        return ''
    exact = record.ratio_low == record.ratio_high  # counts have no spread
    return f'{record.ratio:.2f}' + ('' if exact else f' ({record.ratio_low:.2f}-{record.ratio_high:.2f})')


def _table(title: str, columns: Columns, records: Sequence[Any]) -> Table:
    cells = {head: [cell(record) for record in records] for head, cell in columns.items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    return Table(title, list(shown), list(zip(*shown.values(), strict=True)), left=('kind', 'size', 'mode', 'operator'))


def conditions(results: Results) -> list[str]:
    """Return the conditions of the run and its notes, to be printed below the tables."""
    meta = results.meta
    threads = f'{meta["threads"]}{" (each process pinned to as many cores)" if meta.get("cores") else ""}'
    lines = [
        f'Measured {meta["date"]} on {meta["machine"]}. Device: {meta["device"]}, threads: {threads}, torch: '
        f'{meta["torch"]}, clock: {meta["clock"]}, rounds: {meta["rounds"]} or more. Times are medians.'
    ]
    if found := meta.get('runtimes'):
        versions = ', '.join(f'{name} {version}' for name, version in found.items())
        lines.append(
            f'Exported files in {versions}. x fused: median and quartiles of the ratios within a round to the arch in '
            'PyTorch, fused; below 1 is faster.'
        )
    elif meta['baseline']:
        lines.append(
            f'x {meta["baseline"]}: median and quartiles of the ratios within a round; below 1 is faster or smaller. '
            f'Inference of {meta["baseline"]}: {meta["baseline_mode"]}.'
        )
    if results.of('infer'):
        size, latency = meta['mes_units']
        lines.append(
            f'MES: 100 x (parameters / {size:g} M)^-0.5 x (ms per image / {latency:g} ms)^-1. Compare it within this '
            'table only, because latency depends on the machine.'
        )
    return lines + results.notes
