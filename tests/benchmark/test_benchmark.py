"""The benchmark: what it refuses, what it counts, and what it writes. No test depends on a clock."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from rich.progress import Progress
from torch import nn

from mmplugin import cli
from mmplugin.backbones import FAMILIES
from mmplugin.benchmark import command, measure, plot, results, sizes, subjects
from mmplugin.benchmark.measure import Settings, Side
from mmplugin.benchmark.results import Measurement, Model, OperatorShare, Results
from mmplugin.errors import UserError

TINY = ('evit_m0', '--size', '32', '--rounds', '1')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (
            ['v2_s9'],
            "'v2_s9' is neither an arch such as v2_s2, nor a JSON file, nor a config. Config 'v2_s9' not found",
        ),
        (['timm:v2_s9'], "no counterpart of 'v2_s9'; allowed after timm: are v1_l1"),
        (['v2_s0', '--modes', 'fast'], '--modes: fast: allowed are eager, fused'),
        (['v2_s0', '--modes', 'fused+fused'], '--modes: fused+fused: allowed are eager, fused'),
        (['v2_s0', '--size', '16'], '--size: 16: allowed are 512 or 800x1333'),
        (['v2_s0', '--size', '64x'], '--size: 64x: allowed'),
        (['v2_s0', '--batch', '0'], '--batch: 0: allowed are whole numbers from 1'),
        (['v2_s0', '--rounds', 'many'], '--rounds: many: allowed'),
        (['v2_s0', '--what', 'speed'], "--what: invalid choice: 'speed' (choose from"),
        (['v2_s0', '--device', 'tpu'], '--device: tpu: allowed are cpu, cuda'),
        (['v2_s0', '--mes-units', '3', '0'], '--mes-units 3.0 0.0: allowed are numbers above 0'),
        (['v2_s0', '--json', 'no/such/folder/x.json'], 'the folder no/such/folder does not exist'),
        (['v2_s0', '--plot', 'x.doc'], 'allowed are names that end in .png'),
        (['v2_s0', '--plot', 'x.png', '--what', 'saved'], 'add infer to --what'),
        (['v2_s0', '--plot', 'x.png', '--accuracy', 'mIoU'], 'published mIoU; these have: v1_l1'),
        (['v2_s0', '--accuracy', 'mAP'], "--accuracy: invalid choice: 'mAP'"),
        (['semfpn_v2_s2', '--beside', 'timm'], 'timm has no semfpn_v2_s2'),
        (['v2_s0', '--beside', 'v2_s9'], "'v2_s9' is neither an arch"),
    ],
)
def test_a_wrong_argument_ends_with_exit_code_2_before_anything_runs(argv, message, refusal):
    assert message in refusal(argv)


def test_a_gpu_that_does_not_exist_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        command.parse(['v2_s0', '--device', 'cuda'])
    assert 'torch finds no CUDA GPU' in capsys.readouterr().err


def test_without_the_module_resource_the_benchmark_imports_and_omits_peak():
    code = (
        "import sys; sys.modules['resource'] = None\n"  # as on Windows
        'from mmplugin.benchmark import command\n'
        "print(*command.parse(['v2_s0']).what)\n"
        "command.parse(['v2_s0', '--what', 'peak'])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['infer', 'train', 'saved']
    assert 'UserError: --what peak' in done.stderr.splitlines()[-1].rpartition('mmplugin.errors.')[2]


def test_all_and_families_stand_for_their_archs():
    assert len(subjects.expand(['all'])) == 13
    assert subjects.expand(['v1', 'v1_l1', 'x.py']) == ['v1_l1', 'v1_l3', 'v1_l7', 'x.py']


class TwoProducts(nn.Module):
    """Autograd saves the input of both products, once, and the result of the sigmoid."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.other = nn.Parameter(torch.ones(6))

    def forward(self, x):
        product = x * self.weight + x.view(-1, 6) * self.other  # x, (4, 6): 96 bytes; weights are not counted
        return product.sigmoid()  # another (4, 6): 96 bytes


def test_saved_bytes_equal_the_count_by_hand():
    model, x = TwoProducts(), torch.randn(4, 6)
    assert measure.saved_for_backward(model, lambda x: model(x).sum(), x) == 2 * 4 * 6 * 4
    model.requires_grad_(False)
    assert measure.saved_for_backward(model, lambda x: model(x).sum(), x) == 0


def test_a_saved_view_counts_with_its_whole_storage():
    model, big = nn.Linear(2, 1), torch.randn(100, 2)
    assert measure.saved_for_backward(model, lambda x: (x[:1] * model.weight).sum(), big) == 100 * 2 * 4


@pytest.mark.parametrize('frozen', [True, False])
def test_frozen_norms_keep_their_statistics_and_trainable_ones_update_them(frozen, monkeypatch):
    model = nn.Sequential(nn.BatchNorm2d(3))
    subject = subjects.Subject(model, model, lambda x: model(x).sum())
    monkeypatch.setattr(measure, 'build', lambda name, height, width: subject)
    measure._training_step(Settings(freeze_norms=frozen), Side('v2_s0'), (4, 4))()
    assert bool(model[0].running_mean.eq(0).all()) is frozen
    assert model[0].weight.grad is not None


def test_ratios_are_paired():
    # the second round was ten times slower for both: medians of times give 3, rounds give 2, 2, 3
    values = {Side('a'): [2, 20, 3], Side('b', is_baseline=True): [1, 10, 1]}
    ours, baseline = measure.compare('infer', (32, 32), 1, values)
    assert (ours.ratio_low, ours.ratio, ours.ratio_high) == (2, 2, 2.5)
    assert (ours.value, baseline.value, baseline.ratio) == (3, 1, None)
    (alone,) = measure.compare('saved', (32, 32), 1, {Side('a'): [3]})
    assert (alone.low, alone.value, alone.high, alone.ratio) == (3, 3, 3, None)


def test_sides_alternate_and_short_calls_run_more_often():
    calls = []
    sides = {Side(name): partial(calls.append, name) for name in 'ab'}
    times = measure.interleave(sides, Settings(rounds=3))
    assert ''.join(calls) == 'ab' * (measure.WARM_UP + 3 * measure.EXTRA)
    assert [len(values) for values in times.values()] == [3 * measure.EXTRA] * 2


@pytest.mark.parametrize(
    ('size', 'latency', 'published'), [(3.5, 0.9, 102.9), (6.1, 1.1, 63.8), (12.6, 1.6, 30.5), (26.1, 2.7, 12.6)]
)
def test_the_mobile_efficiency_score_equals_the_papers(size, latency, published):
    assert results.mes(size, latency) == pytest.approx(published, abs=0.05)


def test_the_mobile_efficiency_score_in_other_units():
    # 100 * (8 / 2)^-0.5 * (6 / 2)^-1 = 100 / 2 / 3
    assert results.mes(8, 6, (2, 2)) == pytest.approx(100 / 6)


@pytest.fixture
def found():
    """One model with round numbers, and its baseline."""
    meta = dict(date='2026-11-21', machine='a machine', threads=2, torch='2', device='cpu', clock='wall', rounds=3)
    meta.update(baseline='timm', baseline_mode='eager', mes_units=[3, 1])
    models = [
        Model('v2_s2', 'backbone', 12_000_000, {'512x512': 6.5}, {'top-1': 81.6, 'mIoU': 42.4}),
        Model('timm:v2_s2', 'backbone', 12_000_000),
    ]
    size = [512, 512]
    return Results(
        meta,
        models,
        [
            Measurement('infer', 'v2_s2', size, 1, 'fused', 8.0, 7.0, 9.0, 0.5, 0.4, 0.6),
            Measurement('infer', 'timm:v2_s2', size, 1, 'eager', 16.0, is_baseline=True),
            Measurement('saved', 'v2_s2', size, 2, 'eager', 2**20, 2**20, 2**20, 0.45, 0.45, 0.45),
            Measurement('peak', 'v2_s2', size, 2, 'eager', 2**21),
        ],
        [OperatorShare('v2_s2', size, 2, 'aten::mm', 9, 0.25)],
        ['a note'],
    )


def test_the_tables_have_the_columns_that_have_values(found):
    model, inference, saved, peak, operators = results.tables(found)
    assert dict(zip(model.head, model.rows[0], strict=True)) == {
        'model': 'v2_s2',
        'kind': 'backbone',
        'parameters M': '12.00',
        'GMACs': '6.5 at 512x512',
        'published top-1': '81.6',
        'published mIoU': '42.4',
    }
    assert dict(zip(inference.head, inference.rows[0], strict=True)) == {
        'model': 'v2_s2',
        'size': '512x512',
        'batch': '1',
        'mode': 'fused',
        'ms': '8.0',
        'x timm': '0.50 (0.40-0.60)',
        'images/s': '125.0',
        'MES': '6.25',
    }
    assert dict(zip(saved.head[3:], saved.rows[0][3:], strict=True)) == {'MiB': '1', 'x timm': '0.45'}
    assert dict(zip(peak.head[3:], peak.rows[0][3:], strict=True)) == {'mode': 'eager', 'MiB': '2', 'bytes/pixel': '4'}
    assert operators.rows[0][3:] == ('aten::mm', '9', '25.0%')


def test_the_json_file_gives_the_results_back(found, tmp_path):
    found.write_json(tmp_path / 'x.json')
    assert Results.from_json(tmp_path / 'x.json') == found


def test_the_frontier_has_the_points_that_no_faster_one_reaches():
    points = [plot.Point('a', accuracy, ms, '') for accuracy, ms in [(70, 1), (69, 2), (80, 3), (75, 3), (81, 9)]]
    assert [(point.accuracy, point.ms) for point in plot.frontier(points)] == [(70, 1), (80, 3), (81, 9)]


def test_without_a_latency_there_is_nothing_to_plot(found, tmp_path):
    found.measurements.clear()
    with pytest.raises(UserError, match='nothing to plot'):
        plot.plot(found, tmp_path / 'x.png')


def test_a_small_run_from_the_command_line_to_json_and_plot(tmp_path, capsys):
    target, figure = tmp_path / 'x.json', tmp_path / 'x.png'
    argv = ['benchmark', *TINY, '--what', 'infer', 'saved', '--modes', 'eager', 'fused', '--beside', 'evit_m1']
    assert cli.main([*argv, '--json', str(target), '--plot', str(figure)]) == 0
    content = json.loads(target.read_text())
    assert [(record['metric'], record['model'], record['mode']) for record in content['measurements']] == [
        ('infer', 'evit_m0', 'eager'),
        ('infer', 'evit_m0', 'fused'),
        ('infer', 'evit_m1', 'eager'),
        ('saved', 'evit_m0', 'eager'),
        ('saved', 'evit_m1', 'eager'),
    ]
    ours, baseline = content['measurements'][3:]
    assert ours['ratio'] == ours['value'] / baseline['value'] < 1
    model = subjects.build('evit_m0', 32, 32).model
    assert content['models'][0]['parameters'] == sum(parameter.numel() for parameter in model.parameters())
    assert figure.read_bytes().startswith(b'\x89PNG')
    assert 'parameters M' in capsys.readouterr().out


def test_a_training_step_is_timed_and_profiled():
    settings, sides = Settings(rounds=1), [Side('evit_m0')]
    (step,) = measure.training(settings, sides, (32, 32))
    assert step.value > 0
    shares = measure.operator_profile(settings, sides, (32, 32))
    assert len(shares) == measure.OPERATORS
    assert 0 < sum(share.share for share in shares) <= 1


def run(*argv):
    return command.run(command.parse(argv), Progress(disable=True))


def test_without_timm_its_columns_are_omitted(monkeypatch):
    def missing():
        raise ImportError('no timm')

    monkeypatch.setattr(subjects, 'import_timm', missing)
    monkeypatch.setattr(measure, 'in_new_process', lambda function, *args: function(*args))
    found = run(*TINY, '--what', 'saved', '--beside', 'timm')
    assert [(record.model, record.ratio) for record in found.measurements] == [('evit_m0', None)]
    assert 'its columns are omitted' in results.conditions(found)[-1]


def _die(*args):
    os._exit(9)  # as a process does when memory runs out


def test_a_model_whose_process_is_killed_costs_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, '_with_settings', _die)
    found = run(*TINY, '--what', 'peak', '--json', str(tmp_path / 'x.json'))
    assert 'evit_m0: no peak at 32x32, because its process ran out of memory or was killed' in found.notes[-1]
    assert json.loads((tmp_path / 'x.json').read_text())['models'][0]['name'] == 'evit_m0'


@pytest.mark.parametrize('arch', ['v1_l1', 'v2_s0', 'evit_m0'])
def test_timms_side_gives_maps_of_the_same_shapes_at_other_sizes(timm, arch):
    x = torch.randn(1, 3, 96, 128)
    sides = [subjects.build(name, 96, 128).model.eval() for name in (arch, f'timm:{arch}')]
    with torch.inference_mode():
        ours, theirs = ([tuple(feature.shape) for feature in side(x)] for side in sides)
    assert ours == theirs


def test_an_arch_from_a_file_is_measured_like_a_name(tmp_path):
    path = tmp_path / 'found/arch.json'
    path.parent.mkdir()
    path.write_text(json.dumps(dict(type='EfficientFormerV2', arch=FAMILIES['v2'].explicit('s0'))))
    name = str(path)
    assert (subjects.kind_of(name), subjects.short_name(name)) == ('backbone', 'found/arch.json')
    assert sizes.macs(name, [(64, 96)]) == sizes.macs('v2_s0', [(64, 96)])
    assert sizes.parameters(subjects.build(name, 64, 96).model) == sizes.parameters(sizes.on_meta_device('v2_s0'))


@pytest.mark.parametrize('name', ['maskrcnn_v2_s0', 'retinanet_evit_m0', 'semfpn_v2_s0'])
def test_a_config_can_be_measured(name):
    subject, x = subjects.build(name, 64, 96), torch.randn(1, 3, 64, 96)
    assert subject.loss(x).requires_grad
    with torch.inference_mode():
        assert len(subjects.apply_mode_(subject, 'fused')(x)) == 1
