"""Searches that measure exported backbones, and the latency table of a runtime."""

import pytest
import torch
from search_without_clock import options
from torch import nn

from mmplugin.backbones import EfficientFormerV2
from mmplugin.benchmark.measure import Settings
from mmplugin.errors import UserError
from mmplugin.search import in_runtime
from mmplugin.search.command import main
from mmplugin.search.conditions import Conditions, check_conditions
from mmplugin.search.probes import measure_whole
from mmplugin.search.run import check_runtime

pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')

ARCH = dict(widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), attention_blocks=1, ratios=((2,),) * 4, key_dim=4, value_dim=4)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = EfficientFormerV2(ARCH, drop_path_rate=0.0).eval()


@pytest.mark.parametrize('runtime', ['onnxruntime', pytest.param('openvino', marks=pytest.mark.slow)])
def test_what_is_timed_is_the_backbone_itself(runtime):
    torch.manual_seed(0)
    backbone, x = Model().backbone, torch.rand(1, 3, 64, 96)
    ours = in_runtime.exported(backbone, x, runtime, 1)()
    with torch.inference_mode():
        for own, theirs in zip(ours, backbone(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(own), theirs, rtol=1e-4, atol=1e-4)


def test_the_meter_compares_exported_backbones(monkeypatch):
    calls = []
    monkeypatch.setattr(in_runtime, 'exported', lambda backbone, *rest: calls.append((backbone, *rest)) or (lambda: 0))
    model = Model()
    settings = Settings(rounds=2, threads=1)
    meter = in_runtime.RuntimeMeter(model, True, torch.rand(1, 3, 64, 96), 'onnxruntime', settings)
    assert meter.ratio(model) > 0
    assert all(call[0] is model.backbone and call[2:] == ('onnxruntime', 1) for call in calls)
    assert meter.figures(model, 3.0).memory > 0  # of PyTorch


@pytest.mark.slow
def test_a_table_is_fitted_to_exported_networks(monkeypatch):
    monkeypatch.setattr('mmplugin.search.probes.FIT', 28)
    conditions = Conditions.of_machine('v2', (32, 32), 'onnxruntime', 1, 1, 'cpu', 2, 0, 'cpu')
    table = measure_whole(conditions, EfficientFormerV2.explicit(ARCH), None)
    assert len(table.checks) == 12
    assert table.predict(ARCH) > 0


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--mode', 'eager'], 'has no use for --mode; omit it'),
        (['--rank-only'], 'mmplugin benchmark v2_s0 v2_s1 --runtime onnxruntime'),
        (['--launcher', 'pytorch'], 'measures in one process; omit --launcher'),
    ],
)
def test_options_that_do_not_go_with_a_runtime_are_refused(argv, message):
    with pytest.raises(UserError, match=message):
        main(['semfpn_v2_s0', '--mini', '--target-latency', '60%', '--runtime', 'onnxruntime', *argv])


def test_only_backbones_of_one_image_on_the_cpu_are_measured_in_a_runtime():
    with pytest.raises(UserError, match='measures backbones in openvino: add --of backbone'):
        check_runtime(options(mode='openvino'))
    with pytest.raises(UserError, match='one image on the CPU in openvino; omit --device and --batch'):
        check_runtime(options(mode='openvino', of='backbone', batch=2))
    with pytest.raises(UserError, match='openvino runs one image on the CPU here'):
        check_conditions(Conditions.of_machine('v2', (64, 64), 'openvino', 2, 1, 'cpu', 2, 0, 'cpu'))
