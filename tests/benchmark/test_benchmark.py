"""The benchmark: what it refuses, what it counts, and the tables it writes. No test looks at a clock."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmplugin import cli
from mmplugin.benchmark import command as benchmark
from mmplugin.benchmark import measure as benchmark_measure
from mmplugin.benchmark import output as benchmark_output
from mmplugin.benchmark import subjects as benchmark_models
from mmplugin.errors import UserError

TINY = ('evit_m0', '--size', '64', '--rounds', '2')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['v2_s9'], "'v2_s9' is no arch .*v2_s0.*no config 'v2_s9'"),
        (['timm:v2_s9'], 'no counterpart .*allowed after timm: are v1_l1'),
        (['v2_s0', '--modes', 'fast'], "mode 'fast': allowed are eager, fused"),
        (['v2_s0', '--modes', 'fused+fused'], 'allowed are eager, fused'),
        (['v2_s0', '--size', '16'], '--size 16: allowed are 512 or 800x1333'),
        (['v2_s0', '--size', '64x'], '--size 64x: allowed'),
        (['v2_s0', '--batch', '0'], '--batch 0: allowed are whole numbers from 1'),
        (['v2_s0', '--rounds', 'many'], '--rounds many: allowed'),
        (['v2_s0', '--what', 'speed'], '--what speed: allowed are infer, train, kept, peak, profile'),
        (['v2_s0', '--device', 'tpu'], '--device tpu: allowed are cpu, cuda'),
        (['v2_s0', '--mes-units', '3', '0'], '--mes-units 0: allowed are numbers above 0'),
        (['v2_s0', '--mes-alpha', '0.5', '2'], '--mes-alpha 0.5 2: allowed'),
        (['v2_s0', '--json', 'no/such/folder/x.json'], 'the folder no/such/folder does not exist'),
        (['v2_s0', '--plot', 'x.doc'], r'allowed are names that end in \.png'),
        (['v2_s0', '--plot', 'x.png', '--what', 'kept'], 'add infer to --what'),
        (['v2_s0', '--plot', 'x.png', '--accuracy', 'mIoU'], 'published mIoU; these have: v1_l1'),
        (['v2_s0', '--accuracy', 'mAP'], '--accuracy mAP: allowed are top-1'),
        (['v2_s0', '--write', 'no.md'], '--write no.md: the file must hold the lines <!-- benchmark: begin -->'),
    ],
)
def test_a_wrong_argument_stops_before_anything_runs(argv, message):
    with pytest.raises(UserError, match=f'(?s){message}'):
        benchmark.main(argv)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='torch sees no CUDA GPU'):
        benchmark.parse(['v2_s0', '--device', 'cuda'])


def test_all_and_families_stand_for_their_archs():
    assert len(benchmark_models.expand(['all'])) == 13
    assert benchmark_models.expand(['v1', 'v1_l1', 'x.py']) == ['v1_l1', 'v1_l3', 'v1_l7', 'x.py']


class Handmade(nn.Module):
    """Keeps for backward: the input of the product, once although two layers want it, and a sigmoid's result."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.other = nn.Parameter(torch.ones(6))

    def forward(self, x):
        product = x * self.weight + x.view(-1, 6) * self.other  # x, (4, 6): 96 bytes; weights are not counted
        return product.sigmoid()  # another (4, 6): 96 bytes


def test_kept_bytes_of_a_handmade_model():
    model, x = Handmade(), torch.randn(4, 6)
    assert benchmark_measure.kept_bytes(model, lambda x: model(x).sum(), x) == 2 * 4 * 6 * 4
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert benchmark_measure.kept_bytes(model, lambda x: model(x).sum(), x) == 0


def test_a_view_keeps_its_whole_storage():
    weight, big = nn.Parameter(torch.ones(2)), torch.randn(100, 2)
    model = nn.Module()
    model.weight = weight
    assert benchmark_measure.kept_bytes(model, lambda x: (x[:1] * weight).sum(), big) == 100 * 2 * 4


def test_frozen_means_norms_stay_and_learning_means_they_move():
    for frozen in (True, False):
        runnable = benchmark_models.backbone(nn.Sequential(nn.BatchNorm2d(3)), frozen)
        runnable.model.train()
        runnable.model(torch.randn(2, 3, 4, 4) + 5)
        assert bool(runnable.model[0].running_mean.eq(0).all()) is frozen


def test_ratios_are_paired():
    # the second round was ten times slower for both: medians of times would say 3, rounds say 2, 2, 3
    ratio = benchmark_measure.paired_ratios([2, 20, 3], [1, 10, 1])
    assert ratio == dict(median=2, low=2, high=2.5)
    assert benchmark_measure.paired_ratios([3], [2]) == dict(median=1.5, low=1.5, high=1.5)


def test_in_turn_calls_in_turn_and_short_calls_more_often(monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark_measure, 'MOST_ROUNDS', 7)
    times = benchmark_measure.in_turn(
        {name: lambda name=name: calls.append(name) for name in 'ab'}, 3, 'wall', torch.device('cpu')
    )
    assert ''.join(calls) == 'ab' * (7 + benchmark_measure.WARM_UP)
    assert {name: len(values) for name, values in times.items()} == {'a': 7, 'b': 7}


@pytest.mark.parametrize(
    ('size', 'latency', 'published'), [(3.5, 0.9, 102.9), (6.1, 1.1, 63.8), (12.6, 1.6, 30.5), (26.1, 2.7, 12.6)]
)
def test_mes_is_the_papers(size, latency, published):
    assert benchmark_output.Mes()(size, latency) == pytest.approx(published, abs=0.05)


def test_mes_by_hand():
    # 10 * (8 / 2)^-0.5 * (6 / 2)^-1 = 10 / 2 / 3
    assert benchmark_output.Mes(10, 2, 2, 0.5, 1)(8, 6) == pytest.approx(10 / 6)


@pytest.fixture
def results():
    """One arch with round numbers, measured under the conditions of the goals."""
    meta = dict(date='2026-11-21', machine='a machine', threads=2, torch='2', device='cpu', clock='wall', rounds=3)
    meta.update(norms='frozen', beside='timm', beside_mode='eager', mes=vars(benchmark_output.Mes()))
    spread = dict(median=8.0, low=7.0, high=9.0)
    ratio = dict(median=0.5, low=0.4, high=0.6)
    model = dict(name='v2_s2', kind='backbone', parameters=12_000_000, macs={'512x512': 6_500_000_000})
    model.update(accuracy='top-1', published={'top-1': 81.6})
    run = dict(name='v2_s2', size=[512, 512], batch=1, mode='eager', ms=spread, ratio=ratio)
    run.update(images_per_second=125.0, mes=3.0)
    step = dict(name='v2_s2', size=[512, 512], batch=2, ms=spread, ratio=ratio, kept=2**20, kept_ratio=0.45)
    peak = dict(name='v2_s2', size=[2048, 2048], batch=1, mode='eager', peak=2**21, ratio=0.7, growth=1.1)
    peak['growth_from'] = [512, 512]
    return benchmark_output.Results(meta, [model], [run], [step], [peak])


def test_the_tables_columns(results):
    size, inference, training, memory = benchmark_output.tables(results)
    assert dict(zip(size.head, size.rows[0], strict=True)) == {
        'model': 'v2_s2',
        'kind': 'backbone',
        'parameters M': '12.00',
        'GMACs': '6.5 at 512x512',
        'published top-1': '81.6',
    }
    assert dict(zip(inference.head, inference.rows[0], strict=True)) == {
        'model': 'v2_s2',
        'size': '512x512',
        'batch': '1',
        'mode': 'eager',
        'ms': '8.0',
        'images/s': '125.0',
        'x timm (quartiles)': '0.50 (0.40-0.60)',
        'MES': '3',
    }
    assert training.head == ('model', 'size', 'batch', 'step ms', 'x timm (quartiles)', 'kept MiB', 'x timm')
    assert training.rows[0][5:] == ('1', '0.45')
    assert memory.rows[0][4:] == ('2', '0.70', '1.10')
    results.meta['beside'] = None
    assert not [name for grid in benchmark_output.tables(results) for name in grid.head if 'timm' in name]


def test_a_missed_goal_is_named(results):
    assert benchmark_output.goals_missed(results) == []
    results.training[0]['kept_ratio'] = 0.55  # fine for every arch but this one
    results.memory[0]['growth'] = 1.31
    assert benchmark_output.goals_missed(results) == [
        'v2_s2 bytes kept for backward 0.55 (goal 0.5)',
        'v2_s2 memory per pixel x1.31 (goal 1.3)',
    ]
    results.memory.clear()
    results.meta['beside'] = 'v1_l1'
    assert benchmark_output.goals_missed(results) is None


def test_the_page_keeps_what_is_around_the_tables(results, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'before\n\n{benchmark_output.BEGIN}\nold\n{benchmark_output.END}\n\nafter\n')
    for _ in range(2):
        benchmark_output.write_page(page, results, 'the command')
    text = page.read_text()
    assert text.startswith('before\n\n<!--')
    assert text.endswith('-->\n\nafter\n')
    assert 'old' not in text
    assert text.count('| model | size | batch | mode | ms | images/s | x timm (quartiles) | MES |') == 1
    assert 'the command' in text
    assert 'Goals missed: none.' in text


def test_a_small_run_end_to_end(tmp_path, capsys):
    target, picture = tmp_path / 'x.json', tmp_path / 'x.png'
    what = ['--what', 'infer', 'train', 'kept', 'profile']
    argv = ['benchmark', *TINY, *what, '--modes', 'eager', 'fused', '--beside', 'evit_m1']
    assert cli.main([*argv, '--json', str(target), '--plot', str(picture)]) == 0
    found = json.loads(target.read_text())
    assert [(record['name'], record['mode']) for record in found['inference']] == [
        ('evit_m0', 'eager'),
        ('evit_m0', 'fused'),
        ('evit_m1', 'eager'),
    ]
    ours, other = found['training']
    assert ours['kept_ratio'] == ours['kept'] / other['kept'] < 1
    assert found['models'][0]['parameters'] == sum(p.numel() for p in _evit_m0().parameters())
    assert 0 < sum(record['share'] for record in found['profile']) <= 1
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert 'parameters M' in capsys.readouterr().out


def _evit_m0():
    cls, arch = benchmark_models.ARCHS['evit_m0']
    return cls(arch)


def test_without_timm_its_columns_are_left_out(monkeypatch):
    def missing():
        raise ImportError('no timm')

    monkeypatch.setattr(benchmark_models, 'import_timm', missing)
    options = benchmark.parse([*TINY, '--what', 'kept', '--beside', 'timm'])
    results = benchmark.Benchmark(options).run()
    assert [record['name'] for record in results.training] == ['evit_m0']
    assert 'its columns are left out' in benchmark_output.closing_lines(results)[-1]


def _dies(options, what):
    os._exit(9)  # as a process does whose memory ran out


def test_a_model_that_dies_does_not_cost_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, '_measured', _dies)
    options = benchmark.parse([*TINY, '--what', 'kept', '--json', str(tmp_path / 'x.json')])
    results = benchmark.Benchmark(options).run()
    assert 'evit_m0: the process that measured train was killed' in benchmark_output.closing_lines(results)[-1]
    assert json.loads((tmp_path / 'x.json').read_text())['models'][0]['name'] == 'evit_m0'


@pytest.mark.parametrize('arch', ['v1_l1', 'v2_s0', 'evit_m0'])
def test_timms_side_gives_the_same_maps_at_other_sizes(timm, arch):
    x = torch.randn(1, 3, 96, 128)
    sides = [benchmark_models.resolve(name).build(96, 128).model.eval() for name in (arch, f'timm:{arch}')]
    with torch.inference_mode():
        ours, theirs = ([tuple(feature.shape) for feature in side(x)] for side in sides)
    assert ours == theirs


def test_peak_memory_of_a_process_that_fails(monkeypatch):
    failed = SimpleNamespace(returncode=-9, stderr='', stdout='')
    monkeypatch.setattr(benchmark_measure.subprocess, 'run', lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match=r'ended with -9 .*smaller --peak-size'):
        benchmark_measure.peak_bytes('v2_s0', (64, 64), 1, 'eager', 'cpu')
