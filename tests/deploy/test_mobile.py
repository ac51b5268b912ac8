"""Files for phones: what they can be, which operators remain outside of XNNPACK, and that they equal PyTorch."""

import importlib.util

import numpy as np
import pytest
import torch
from random_backbones import build
from tiny_heads import as_truth, sample, tiny

from mmplugin.benchmark.sizes import ARCHS as ALL
from mmplugin.deploy import command, export, export_backbone, mobile, open_backbone
from mmplugin.deploy.check import FEATURE_TOLERANCE, prove_numbers
from mmplugin.deploy.forms import reverses_channels
from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.models import Choice, traceable
from mmplugin.deploy.runtimes import ExecuTorch
from mmplugin.deploy.samples import tensors
from mmplugin.errors import UserError

pytestmark = pytest.mark.no_cover  # measuring the exporter's own Python code would take another half of the time
SIZE = (128, 160)  # two windows of EfficientViT's stride 16, in both directions
SLOW_OPERATORS = ('flip', 'aten::mm', 'aten::index.Tensor')  # what XNNPACK leaves to single-threaded kernels


@pytest.mark.parametrize('kind', mobile.FORMATS)
@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--dynamic'], '--dynamic: files of the format {} have a fixed size'),
        (['--int8'], '--int8 is for the format onnx; omit it, or omit --format {}'),
        (['--input', 'image'], '--format {} takes normalized tensors; omit --input image'),
        (['--with-predictor'], '--with-predictor is for whole models that take images, in the formats onnx and'),
        ([], '--format {}: whole detectors cannot be exported, because NMS .* --what neck or --what backbone'),
    ],
)
def test_what_a_phone_cannot_run_is_refused_before_weights_are_read(kind, argv, message, monkeypatch):
    monkeypatch.setattr(export, 'require_packages', lambda kind: None)
    with pytest.raises(UserError, match=message.format(kind)):
        command.main(['retinanet_v2_s0', 'missing.pth', '--format', kind, *argv])


@pytest.mark.parametrize(('kind', 'package'), [('executorch', 'executorch'), ('coreml', 'coremltools')])
def test_a_missing_package_is_named_with_the_command_that_installs_it(kind, package, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    message = (
        rf'the format {kind} needs packages that are not installed \({package}\): `pip install "mmplugin\[{kind}\]"`'
    )
    with pytest.raises(UserError, match=message):
        command.main(['semfpn_v2_s0', 'missing.pth', '--format', kind])


def logits(tmp_path):
    """Return a tiny segmentor, and what an exporter for phones needs of it."""
    model, classes = tiny('semantic')
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'weights')
    choice = Choice(input='tensor', size=SIZE, logits=True)
    return model, traceable(model, classes, choice, 'semantic', weights, dict(long=160, short=128))


def test_logits_of_a_tensor_are_those_of_mmseg(tmp_path):
    model, found = logits(tmp_path)
    x = torch.randn(1, 3, *SIZE)
    meta = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, padding_size=[0, 0, 0, 0])
    with torch.no_grad():
        expected = model.inference(x, [meta])[0]
        (one,) = found.module(x)
    torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


class Images:
    """An image that is smaller than the file in place of a data set."""

    def fit_(self, size):
        """Do nothing."""

    def samples(self, count):
        torch.manual_seed(1)
        yield as_truth('semantic', sample(96, 160, (192, 320)))


def test_images_are_normalized_then_padded_with_zeros():
    model, _ = tiny('semantic')
    (x,) = tensors(Images(), model, SIZE, 1)
    (image,) = Images().samples(1)
    mean, std = model.data_preprocessor.mean.flatten(), model.data_preprocessor.std.flatten()
    red = image.image[..., 2 if reverses_channels(model.data_preprocessor) else 0].astype(np.float32)
    np.testing.assert_allclose(x[0, 0, :96], (red - float(mean[0])) / float(std[0]), atol=1e-5)
    assert x.shape == (1, 3, *SIZE)
    assert not x[:, :, 96:].any()


def operators(path):
    """Return the operators of a .pte file that no delegate runs."""
    from executorch.exir._serialize import _program

    program = _program.deserialize_pte_binary(path.read_bytes())
    program = getattr(program, 'program', program)
    return {f'{op.name}.{op.overload}' for plan in program.execution_plan for op in plan.operators}


def check_backbone(name, path):
    family, arch = ALL[name]
    backbone = build(family.__name__, arch).eval()
    export_backbone(backbone, path, SIZE, 'executorch')
    assert not [op for op in operators(path) if any(slow in op for slow in SLOW_OPERATORS)]
    x = torch.from_numpy(sample(*SIZE, SIZE).image).permute(2, 0, 1)[None] / 64 - 2
    found = open_backbone(path, 'executorch', threads=1)(x.numpy())
    with torch.no_grad():
        expected = [level.numpy() for level in backbone(x)]
    return max(
        np.abs(one - other).max() / max(1, np.abs(one).max()) for one, other in zip(expected, found, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
def test_every_backbone_lowers_to_executorch_and_equals_torch(name, tmp_path):
    pytest.importorskip('executorch')
    path = tmp_path / 'x.pte'
    assert check_backbone(name, path) < FEATURE_TOLERANCE


@pytest.mark.slow
def test_whole_logits_are_proven_in_executorch_and_the_check_notices_other_weights(tmp_path):
    pytest.importorskip('executorch')
    model, found = logits(tmp_path)
    path = tmp_path / 'x.pte'
    export.write(export.program_of(found), found, 'executorch', path)
    run = ExecuTorch(path, threads=1)
    images = list(tensors(Images(), model, SIZE, 1))
    assert prove_numbers(run, 'a runtime', found, images).problems == []
    assert run.program.load_method('mmplugin').execute(()) == [found.metadata.to_json()]
    with torch.no_grad():
        next(found.module.parameters()).mul_(1.5)
    (problem,) = prove_numbers(run, 'a runtime', found, images).problems
    assert problem == '1 of 1 results differ by more than rounding'


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
def test_every_backbone_converts_to_coreml(name, tmp_path):
    coremltools = pytest.importorskip('coremltools')
    family, arch = ALL[name]
    backbone = build(family.__name__, arch).eval()
    path = tmp_path / 'x.mlpackage'
    export_backbone(backbone, path, SIZE, 'coreml')
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert [value.name for value in spec.description.input] == [mobile.COREML_INPUT]
    assert [value.name for value in spec.description.output] == [f'stride{stride}' for stride in backbone.out_strides]
    metadata = Metadata.from_json(spec.description.metadata.userDefined['mmplugin'])
    assert (metadata.kind, metadata.size) == ('features', SIZE)
