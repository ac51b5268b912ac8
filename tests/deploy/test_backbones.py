"""The two functions that the benchmark and the search use: a backbone as a file, and the file as a function."""

import numpy as np
import pytest
import torch
from random_backbones import build
from tiny_heads import ARCHS
from torch import nn

from mmplugin.deploy import FORMATS, export_backbone, open_backbone
from mmplugin.deploy.check import FEATURE_TOLERANCE
from mmplugin.errors import UserError

pytestmark = pytest.mark.no_cover  # measuring the exporter's own Python code would take another half of the time
PACKAGES = {'onnxruntime': 'onnxruntime', 'openvino': 'openvino', 'executorch': 'executorch'}


def require(runtime):
    pytest.importorskip(PACKAGES[runtime])
    if FORMATS[runtime] == 'onnx':
        pytest.importorskip('onnxscript')


class Pooling(nn.Module):
    """A module that is not of mmplugin."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(x)
        return [nn.functional.max_pool2d(x, 4), nn.functional.max_pool2d(x, 8)]


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('kind', ['EfficientFormer', 'other'])
def test_a_backbone_comes_back_as_a_function_with_the_same_maps(kind, runtime, tmp_path):
    require(runtime)
    module = (Pooling() if kind == 'other' else build(kind, ARCHS[kind])).eval()
    keys = list(module.state_dict())
    path = tmp_path / 'backbone.onnx'
    export_backbone(module, path, (64, 96), FORMATS[runtime])
    assert list(module.state_dict()) == keys  # norms are folded in a copy
    x = torch.randn(1, 3, 64, 96)
    found = open_backbone(path, runtime, threads=1)(x.numpy())
    with torch.no_grad():
        expected = [level.numpy() for level in module(x)]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=FEATURE_TOLERANCE * max(1, np.abs(one).max()))
    assert [p.name for p in tmp_path.iterdir()] == ['backbone.onnx']


def test_an_unknown_format_and_an_unknown_runtime_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no format 'tflite'; allowed: onnx, openvino"):
        export_backbone(Pooling(), tmp_path / 'x', (64, 64), 'tflite')
    with pytest.raises(UserError, match=r"no runtime 'tensorrt'; allowed: onnxruntime, openvino"):
        open_backbone(tmp_path / 'x', 'tensorrt')
