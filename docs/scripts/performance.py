"""Write the tables of docs/performance.md from docs/data/benchmark.json, which ``mmplugin benchmark --json`` writes.

Run ``python docs/scripts/performance.py``.
"""

from markers import ROOT, replace_between

from mmplugin.benchmark.results import MIB, Measurement, Results, conditions, size_text, tables
from mmplugin.tables import Table

PAGE = ROOT / 'docs' / 'performance.md'
DATA = ROOT / 'docs' / 'data' / 'benchmark.json'
SIZE = '512x512'


def summary(results: Results) -> str:
    """Return a table with one row per model: all metrics at one size, with the ratios to the baseline."""
    found = {(r.metric, r.model, r.mode): r for r in results.measurements if size_text(r.size) == SIZE}
    modes = list(dict.fromkeys(r.mode for r in results.of('infer')))
    columns = {f'{mode}, ms': ('infer', mode) for mode in modes}
    columns |= {
        'training step, ms': ('train', 'eager'),
        'saved, MiB': ('saved', 'eager'),
        'peak, MiB': ('peak', modes[0]),
    }
    rows = [
        (
            model.name,
            str(model.published['top-1']),
            *(_cell(found[metric, model.name, mode]) for metric, mode in columns.values()),
        )
        for model in results.models
        if not model.name.startswith('timm:')
    ]
    return Table('', ('model', 'top-1', *columns), rows).markdown()


def _cell(record: Measurement) -> str:
    value = f'{record.value / MIB:.0f}' if record.metric in ('saved', 'peak') else f'{record.value:.1f}'
    return f'{value} ({record.ratio:.2f})'


def details(results: Results) -> str:
    """Return all tables, each in a part that the reader can open."""
    parts = [
        f'<details markdown>\n<summary>{table.title}</summary>\n\n{table.markdown()}\n\n</details>'
        for table in tables(results)
    ]
    command = f'Measured by\n\n```sh\n{results.meta["command"]}\n```'
    return '\n\n'.join([command, *parts, *conditions(results)])


if __name__ == '__main__':
    measured = Results.from_json(DATA)
    replace_between(PAGE, 'summary', summary(measured))
    replace_between(PAGE, 'tables', details(measured))
