"""What ``mmplugin search --rank-only`` writes: the answer in one sentence, a table, a picture and a JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmplugin.benchmark.plot import plot
from mmplugin.benchmark.results import Measurement, Model, Results
from mmplugin.files import atomic_write
from mmplugin.search.budget import MIB, QUANTITIES
from mmplugin.search.other_archs import START
from mmplugin.search.rank import PARTS, SCORE, Ranking, Row
from mmplugin.tables import Table


def sentence(ranking: Ranking) -> str:
    """Return the answer, which can be negative."""
    rows, limits = ranking.rows, ranking.budget.limits()
    published = [row for row in rows if row.published]
    fitting = [row for row in published if not row.unmet]
    if not published:
        start = rows[0]
        verdict = 'does not fit' if start.unmet else 'fits'
        return f'No published network was measured. The start {verdict}: {_costs(start, limits)}.'
    if not fitting:
        fastest = published[0]
        missed = _costs(fastest, {name: limits[name] for name in fastest.unmet})
        rest = fastest.parts.get('neck', 0.0) + fastest.parts.get('head', 0.0)
        share = f' Neck and head take {rest:.3g} ms of it.' if rest and 'latency_ms' in fastest.unmet else ''
        return f'None of the {len(published)} networks fits. The fastest is {fastest.name}: {missed}.{share}'
    best = max(fitting, key=lambda row: (row.published[SCORE], -row.figures.latency_ms))
    text = f'{best.name} is the best published network that fits: {_costs(best, limits)}, '
    text += f'{SCORE} {best.published[SCORE]}.'
    limit = limits.get('latency_ms')
    if limit is not None and best.high > limit:
        text += f' The upper quartile of its latency is {best.high:.1f} ms: the limit is within the noise.'
    return text


def _costs(row: Row, limits: Mapping[str, float]) -> str:
    """Return what a network has of each limit."""
    texts = []
    for name, limit in limits.items():
        quantity = QUANTITIES[name]
        texts.append(f'{quantity.name} {quantity.format(getattr(row.figures, name))} of {quantity.format(limit)}')
    return ', '.join(texts)


def tables(ranking: Ranking, accuracies: Sequence[str], title: str) -> list[Table]:
    """Return what all networks cost, and how they compare.

    Args:
        ranking: All networks.
        accuracies: Names of the published accuracies to show.
        title: Conditions of the measurement.
    """
    parts = [name for name in (*PARTS, 'head') if any(name in row.parts for row in ranking.rows)]
    costs, comparison = [], []
    for row in ranking.rows:
        name, figures = f'{row.name} (start)' if row.name == ranking.start != START else row.name, row.figures
        costs.append((
            name,
            f'{figures.latency_ms:.1f}',
            *(f'{row.parts[part]:.1f}' for part in parts),
            f'{figures.params / 1e6:.2f}',
            f'{figures.macs / 1e9:.3g}',
            f'{figures.memory / MIB:.0f}',
        ))  # fmt: skip
        comparison.append((
            name,
            f'{figures.latency_ms:.1f}',
            f'{row.mes:.0f}',
            *(str(row.published.get(accuracy, '')) for accuracy in accuracies),
            'yes' if row.on_frontier else '',
            'no: ' + ', '.join(QUANTITIES[name].name for name in row.unmet) if row.unmet else 'yes',
        ))  # fmt: skip
    return [
        Table(title, ['network', 'ms', *parts, 'M', 'GMACs', 'MiB'], costs),
        Table('Against the budget', ['network', 'ms', 'MES', *accuracies, 'frontier', 'fits'], comparison, ('fits',)),
    ]


def write_json(ranking: Ranking, meta: Mapping[str, Any], path: Path) -> None:
    """Write all figures and their conditions to a file."""
    content = dict(
        meta=dict(meta), answer=sentence(ranking), start=ranking.start, limits=ranking.budget.limits(),
        networks=[asdict(row) for row in ranking.rows], notes=ranking.notes,
    )  # fmt: skip
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def write_picture(ranking: Ranking, meta: Mapping[str, Any], path: Path) -> None:
    """Plot published accuracy over measured latency, with lines at the target and at the start."""
    rows = [row for row in ranking.rows if row.published]
    models = [Model(row.name, 'network', int(row.figures.params), {}, {SCORE: row.published[SCORE]}) for row in rows]
    records = [
        Measurement('infer', row.name, meta['size'], meta['batch'], meta['mode'], row.figures.latency_ms)
        for row in rows
    ]
    lines = {'start': next(row.figures.latency_ms for row in ranking.rows if row.name == ranking.start)}
    if 'latency_ms' in ranking.budget.limits():
        lines['target'] = ranking.budget.limits()['latency_ms']
    plot(Results(dict(meta), models, records), path, SCORE, lines=lines)
