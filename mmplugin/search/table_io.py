"""Latency tables as files: JSON, in milliseconds, with everything that they hold for."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mmplugin.errors import UserError
from mmplugin.files import atomic_write, reason, require_file
from mmplugin.search.conditions import FUNCTION, MACHINE, PROBES, Conditions, differences, processor_name
from mmplugin.search.fitted import PRODUCTS, FittedModel, InSituModel
from mmplugin.search.latency import CheckRow, LatencyTable, refuse_seconds
from mmplugin.search.parts import Part, parts_of
from mmplugin.text import some

KIND = 'mmplugin latency table'
MEASURE_ANEW = 'Run the same command without --latency-table to measure a table here'
LARGEST_FILE = 1 << 26  # bytes; tables have a few hundred kilobytes
MOST_SIZES, LARGEST_SIZE = 8, 1_000_000  # of a part


def write_table(table: LatencyTable, path: Path) -> None:
    """Write a table."""
    content: dict[str, Any] = dict(kind=KIND, unit='ms', conditions=asdict(table.conditions))
    if isinstance(table.model, InSituModel):
        content['entries'] = [[*part, ms] for part, ms in table.model.entries.items()]
    else:
        content['coefficients'] = table.model.coefficients
    content['checks'] = [row._asdict() for row in table.checks]
    try:
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path} cannot be written: {reason(error)}') from error


def read_table(cls: type[LatencyTable], path: Path, expected: dict[str, Any]) -> LatencyTable:
    """Read a table and check that it holds for this machine and for the expected conditions."""
    unknown = set(expected) - {field.name for field in fields(Conditions)}
    if unknown:
        raise TypeError(f'unknown conditions: {", ".join(sorted(unknown))}')
    if path.suffix == '.csv':
        from mmplugin.search.probes import read_probes

        table = read_probes(path)
    else:
        table = _read_json(cls, path)
    check_here(table.conditions, str(path), expected)
    return table


def _read_json(cls: type[LatencyTable], path: Path) -> LatencyTable:
    try:
        require_table(path)
        content = json.loads(path.read_text(encoding='utf-8'))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path} cannot be read: {reason(error)}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is no latency table: it is no JSON ({error})') from error
    if not isinstance(content, dict) or content.get('kind') != KIND:
        raise UserError(f'{path} is no latency table: "kind" is not "{KIND}"')
    if content.get('unit') != 'ms':
        raise UserError(f'{path}: the unit of the times is {content.get("unit")!r}; allowed is "ms"')
    try:
        table = _table_from(cls, content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise UserError(f'{path}: {error}') from error
        raise UserError(f'{path} is damaged ({type(error).__name__}: {error}). {MEASURE_ANEW}') from error
    refuse_seconds([row.ms for row in table.checks], str(path))
    return table


def _table_from(cls: type[LatencyTable], content: dict[str, Any]) -> LatencyTable:
    names = {field.name for field in fields(Conditions)}
    given = dict(content['conditions'])
    if set(given) != names:
        raise UserError(f'the conditions are {some(sorted(given), 20)}; expected {some(sorted(names), 20)}')
    conditions = Conditions(**dict(given, size=tuple(given['size'])))
    checks = [CheckRow(row['arch'], *(_time(row[name]) for name in CheckRow._fields[1:])) for row in content['checks']]
    model: InSituModel | FittedModel
    if 'coefficients' in content:
        coefficients = {kind: [_time(value, 0.0) for value in row] for kind, row in content['coefficients'].items()}
        model = FittedModel(conditions.family, conditions.size, conditions.batch, coefficients)
    else:
        model = InSituModel({_part(kind, stage, sizes): _time(ms) for kind, stage, sizes, ms in content['entries']})
    for row in checks:
        for part in parts_of(conditions.family, row.arch):
            model(part)  # a missing entry is refused here, not in the middle of a search
    return cls(conditions, model, checks)


def require_table(path: Path, most: int = LARGEST_FILE) -> None:
    """Refuse a file that cannot be a table, before it is read."""
    if require_file(path).st_size > most:
        raise UserError(f'{path} has more than {most >> 20} MiB, which no table of times has')


def _part(kind: Any, stage: Any, sizes: Any) -> Part:
    whole = [stage, *sizes]
    if kind not in PRODUCTS or len(whole) > MOST_SIZES or not all(isinstance(value, int) for value in whole):
        raise UserError(f'there is no part {some([kind, *whole], MOST_SIZES)}; allowed kinds: {", ".join(PRODUCTS)}')
    if not (0 <= stage <= MOST_SIZES and all(1 <= size <= LARGEST_SIZE for size in sizes)):
        raise UserError(f'{kind} has the stage and sizes {some(whole, MOST_SIZES)}; allowed are numbers above 0')
    return Part(kind, stage, tuple(sizes))


def _time(value: Any, least: float = 1e-9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise UserError(f'a time is {value!r}; allowed are numbers above 0, in ms')
    return float(value)


def check_here(conditions: Conditions, name: str, expected: dict[str, Any]) -> None:
    """Refuse a table that is not of this machine and of the expected conditions."""
    here: dict[str, Any] = {}
    if conditions.mode != PROBES:
        import torch

        here = dict(processor=processor_name(conditions.device), torch=torch.__version__)
        assert set(here) == set(MACHINE)
        if conditions.clock == FUNCTION:  # nothing was timed
            expected = {key: value for key, value in expected.items() if key != 'clock'}
    else:  # another device, whose mode, threads and clock are what the user chose there
        expected = {key: expected[key] for key in ('family', 'size', 'batch') if key in expected}
    if found := differences(conditions, {**here, **expected}):
        raise UserError(f'{name} is of other conditions than wanted: {"; ".join(found)}. {MEASURE_ANEW}')
