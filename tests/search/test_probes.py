"""Tables from the times of whole networks: what is written, what is read, and what is refused."""

import csv
import json
import random
import shutil

import pytest

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError
from mmplugin.search import LatencyTable
from mmplugin.search.conditions import Conditions
from mmplugin.search.costs import cost
from mmplugin.search.parts import parts_of
from mmplugin.search.probes import FIT, LIST, NOTES, measure_whole, probe_archs, write_probes

SIZE = (64, 96)
AROUND = FAMILIES['v2'].explicit('s0')


def ms(arch):
    """A device that takes 0.1 ms for each part and 1 ms for 20 million multiply-adds."""
    return sum(0.1 + cost('v2', part, SIZE)[0] / 2e7 for part in parts_of('v2', arch))


def fill(path, change=lambda name, value: value):
    archs = json.loads(path.with_name(NOTES).read_text())['archs']
    with path.open('w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(('file', 'ms'))
        rows.writerows((name, change(name, f'{ms(arch):.6f}')) for name, arch in archs.items())


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('probes')
    write_probes(folder, 'v2', SIZE, 1, AROUND, 0, lambda network, x, path: path.write_bytes(b'onnx'))
    return folder


@pytest.fixture
def probes(written, tmp_path):
    return shutil.copytree(written, tmp_path / 'probes') / LIST


def test_a_list_that_was_filled_in_is_a_table_of_the_other_device(probes):
    assert len(list(probes.parent.glob('*.onnx'))) == FIT + 12
    fill(probes)
    table = LatencyTable.load(probes, family='v2', size=SIZE, mode='fused')
    assert table.check().median_error < 1e-3
    smaller = dict(AROUND, widths=(16, 32, 64, 96), hidden=tuple((64,) * depth for depth in AROUND['depths']))
    assert table.predict(smaller) == pytest.approx(ms(smaller), rel=1e-3)
    with pytest.raises(UserError, match='size 64x96, wanted 64x64'):
        LatencyTable.load(probes, size=(64, 64))


def test_networks_of_the_check_are_not_among_those_of_the_fit():
    fit, checks = probe_archs('v2', AROUND, 0)
    assert len(fit) == FIT
    assert all(arch not in fit for arch in checks)


def test_a_second_measurement_shows_how_well_times_repeat(probes):
    """Times that are wrong by up to 6 % cannot rank networks that differ by less; the second column says so."""
    rng = random.Random(0)
    fill(probes, lambda name, value: f'{float(value) * rng.uniform(0.94, 1.06):.6f}')
    assert LatencyTable.load(probes).compare().ceiling == 1.0
    rows = [line.split(',') for line in probes.read_text().split()[1:]]
    again = [f'{name},{value},{float(value) * rng.uniform(0.88, 1.12):.6f}' for name, value in rows]
    probes.write_text('\n'.join(['file,ms,ms_again', *again]))
    assert LatencyTable.load(probes).compare().ceiling < 0.95


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda name, value: '' if name == '03.onnx' else value, r'has no time of 1 of 52 files: 03\.onnx'),
        (lambda name, value: 'fast' if name == '03.onnx' else value, r"time of 03\.onnx is 'fast'; allowed are"),
        (lambda name, value: '-1' if name == '03.onnx' else value, r"is '-1'; allowed are milliseconds above 0"),
        (lambda name, value: f'{float(value) / 1e3:.9f}', 'look like seconds: multiply them by 1000'),
    ],
)
def test_times_that_cannot_be_right_are_refused(probes, change, message):
    fill(probes, change)
    with pytest.raises(UserError, match=message):
        LatencyTable.load(probes)


def test_a_damaged_or_foreign_list_is_refused(probes):
    probes.write_text('network,seconds\n00.onnx,1\n')
    with pytest.raises(UserError, match='has the columns network, seconds; required: file, ms'):
        LatencyTable.load(probes)
    probes.with_name(NOTES).write_text('{}')
    with pytest.raises(UserError, match=r'probes\.json is damaged; write the probes again'):
        LatencyTable.load(probes)
    probes.with_name(NOTES).unlink()
    with pytest.raises(UserError, match=rf'it belongs to {LIST}: keep both together'):
        LatencyTable.load(probes)


def test_probes_are_written_once_and_never_mixed(probes):
    (probes.parent / '00.onnx').write_bytes(b'timed')
    arguments = (1, AROUND, 0, lambda network, x, path: path.write_bytes(b'again'))
    assert write_probes(probes.parent, 'v2', SIZE, *arguments) == probes
    assert (probes.parent / '00.onnx').read_bytes() == b'timed'
    with pytest.raises(UserError, match='has probes of another search; choose another folder'):
        write_probes(probes.parent, 'v2', (64, 64), *arguments)


def test_whole_networks_are_timed_where_parts_cannot_be(monkeypatch):
    """The route of compiled networks, without a compiler."""
    monkeypatch.setattr('mmplugin.search.probes.FIT', 28)
    conditions = Conditions.of_machine('v2', (32, 32), 'fused', 1, 1, 'cpu', 2, 0, 'cpu')
    table = measure_whole(conditions, AROUND, None)
    assert len(table.checks) == 12
    assert table.predict('s0') > 0
