"""Exported backbones in the benchmark: what is refused, what runs beside what, and that wrong files are noticed."""

import json
import math

import pytest
import torch

from mmplugin import cli
from mmplugin.benchmark import measure, runtimes, subjects
from mmplugin.benchmark.measure import Settings, Side
from mmplugin.errors import UserError

NAMES = {'onnxruntime': '1', 'openvino': '2', 'executorch': '3'}


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['v2_s0', '--runtime', 'tensorrt'], "invalid choice: 'tensorrt' (choose from"),
        (['v2_s0', '--runtime', 'executorch+dynamic'], 'invalid choice'),
        (['semfpn_v2_s0', '--runtime', 'onnxruntime'], '--runtime is for backbones; omit semfpn_v2_s0'),
        (['timm:v2_s0', '--runtime', 'onnxruntime'], "omit timm:v2_s0; --timm adds timm's networks"),
        (['v2_s0', '--runtime', 'openvino', '--modes', 'fused'], 'beside PyTorch, fused; omit --modes'),
        (['v2_s0', '--runtime', 'openvino', '--beside', 'timm', '--batch', '8'], 'omit --beside, --batch'),
        (['v2_s0', '--runtime', 'openvino', '--what', 'peak'], 'omit --what'),
        (['v2_s0', '--timm'], '--timm and --files are for exported files: name runtimes'),
        (['v2_s0', '--cores', '1', '--threads', '2'], '--cores 1 has as many threads; omit --threads'),
        (['v2_s0', '--cores', '100000'], '--cores 100000: this process may use'),
    ],
)
def test_a_wrong_argument_ends_with_exit_code_2_before_anything_runs(argv, message, refusal, monkeypatch):
    monkeypatch.setattr(runtimes, 'require_runtime', NAMES.get)
    assert message in refusal(argv)


def test_every_network_runs_beside_pytorch_fused():
    assert runtimes.sides_of('v2_s0', ['onnxruntime', 'onnxruntime+dynamic', 'executorch'], with_timm=True) == [
        Side('v2_s0', 'fused', is_baseline=True),
        Side('v2_s0', 'onnxruntime'),
        Side('v2_s0', 'onnxruntime+dynamic'),
        Side('v2_s0', 'executorch'),
        Side('timm:v2_s0', 'eager'),
        Side('timm:v2_s0', 'onnxruntime'),
        Side('timm:v2_s0', 'executorch'),
    ]


@pytest.fixture
def without_runtimes(monkeypatch):
    """Replace files by notes of what was exported, and runtimes by PyTorch."""
    exported = []

    def export(model, path, size, kind, dynamic):
        exported.append((kind, dynamic))
        path.write_text('')
        if kind == 'executorch':
            path.unlink()
            raise UserError('not this one')

    def open_(path, runtime, threads):
        torch.manual_seed(0)
        model = subjects.build('evit_m0', 32, 32).model.eval()
        scale = 1.01 if 'dynamic' in path.name else 1.0
        return lambda x: [level.detach().numpy() * scale for level in model(torch.from_numpy(x))]

    monkeypatch.setattr(runtimes, 'require_runtime', NAMES.get)
    monkeypatch.setattr(runtimes, 'export_backbone', export)
    monkeypatch.setattr(runtimes, 'open_backbone', open_)
    monkeypatch.setattr(measure, 'in_new_process', lambda function, *args: function(*args))
    return exported


def test_a_run_writes_each_file_once_and_times_all_sides_in_turn(without_runtimes, tmp_path, capsys):
    argv = ['benchmark', 'evit_m0', '--size', '32', '--rounds', '1', '--json', str(tmp_path / 'x.json')]
    argv += ['--runtime', 'torch', 'onnxruntime', 'openvino', 'executorch', '--plot', str(tmp_path / 'x.png')]
    assert cli.main(argv) == 0
    assert without_runtimes == [('onnx', False), ('executorch', False)]
    content = json.loads((tmp_path / 'x.json').read_text())
    records = {record['mode']: record['ratio'] for record in content['measurements']}
    assert list(records) == ['fused', 'onnxruntime', 'openvino']
    assert records['fused'] is None
    assert records['openvino'] > 0
    assert content['notes'] == ['evit_m0-32x32.pte cannot be written: not this one']
    plots = {path.stem for path in tmp_path.glob('*.png')}
    assert plots == {'x-torch', 'x-onnxruntime', 'x-openvino'}
    assert 'Exported files in onnxruntime 1, openvino 2, executorch 3. x fused: median' in capsys.readouterr().out


@pytest.mark.parametrize('factor', [1, math.nan])  # of values that are too large in each dynamic file
def test_a_file_with_other_maps_is_not_timed(factor, without_runtimes, monkeypatch, tmp_path):
    opened = runtimes.open_backbone
    monkeypatch.setattr(
        runtimes, 'open_backbone', lambda *args: lambda x: [values * factor for values in opened(*args)(x)]
    )
    sides = runtimes.sides_of('evit_m0', ['onnxruntime+dynamic'], with_timm=False)
    records, problems = runtimes.inference(Settings(rounds=1), sides, (32, 32), tmp_path)
    assert [record.mode for record in records] == ['fused']
    assert len(problems) == 1
    assert problems[0].startswith('evit_m0-dynamic-32x32.onnx in onnxruntime+dynamic was not timed')


@pytest.mark.slow
def test_an_exported_backbone_and_timms_run_in_onnxruntime(timm, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    argv = ['benchmark', 'evit_m0', '--size', '64', '--rounds', '1', '--runtime', 'onnxruntime', '--timm']
    argv += ['--cores', '1', '--files', str(tmp_path), '--json', str(tmp_path / 'x.json')]
    assert cli.main(argv) == 0
    content = json.loads((tmp_path / 'x.json').read_text())
    found = [(record['model'], record['mode'], record['ratio'] is None) for record in content['measurements']]
    assert found == [
        ('evit_m0', 'fused', True),
        ('evit_m0', 'onnxruntime', False),
        ('timm:evit_m0', 'eager', False),
        ('timm:evit_m0', 'onnxruntime', False),
    ]
    assert {path.name for path in tmp_path.glob('*.onnx')} == {'evit_m0-64x64.onnx', 'timm_evit_m0-64x64.onnx'}
    assert (content['meta']['threads'], content['meta']['cores']) == (1, 1)
