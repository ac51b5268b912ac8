"""The operators and the backbones in ONNX: onnxruntime and torch give the same results, also for new inputs."""

import sys

import operator_references as reference
import pytest
import torch
from mmengine.registry import MODELS
from random_backbones import FEW_BLOCKS, SMALLEST

import mmplugin  # noqa: F401  registers the backbones
from mmplugin import ops
from mmplugin.errors import UserError

pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')

from mmplugin.ops.onnx import translations  # noqa: E402

pytestmark = pytest.mark.no_cover  # measuring the exporter's own Python code would take another half of the time
ANY = torch.export.Dim.DYNAMIC


class Module(torch.nn.Module):
    """A function as a module, for ``torch.onnx.export``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.fixture
def export(tmp_path):
    """Return a function that exports a module and returns the module in onnxruntime."""

    def run(module, args, sizes=None):
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            verbose=False,
            dynamic_shapes=sizes and (sizes,),  # one argument: *args
            custom_translation_table=translations(),
        )
        program.save(tmp_path / 'module.onnx')
        session = onnxruntime.InferenceSession(tmp_path / 'module.onnx', providers=['CPUExecutionProvider'])
        names = [value.name for value in session.get_inputs()]

        def call(*args):
            found = session.run(None, {name: value.numpy() for name, value in zip(names, args, strict=True)})
            return [torch.from_numpy(value) for value in found]

        return call

    return run


def some_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 90
    boxes = torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 60), 1)
    return boxes, torch.rand(count, generator=generator)


def head(maps, anchors, deltas, logits):
    """Decode boxes, apply NMS and pool features, alternately of two images, as a two-stage detector does."""
    size = anchors[:, 2:] - anchors[:, :2]
    center = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    size = size * deltas[:, 2:].exp()
    boxes = torch.cat((center - size / 2, center + size / 2), 1).clamp(0, 128)
    dets, index = ops.nms(boxes, logits.sigmoid(), 0.5)
    rois = torch.cat((index[:, None] % 2, dets[:, :4]), 1)
    return dets, index, ops.roi_align(maps, rois, 7, 0.25)


def test_a_detection_head_runs_with_any_number_of_boxes(export):
    def inputs(count):
        anchors, _ = some_boxes(count, count)
        return torch.randn(2, 4, 32, 32), anchors, torch.randn(count, 4) * 0.2, torch.randn(count)

    exported = export(Module(head), inputs(50), (None, {0: ANY}, {0: ANY}, {0: ANY}))
    for count in (50, 300, 1, 0):
        args = inputs(count)
        for found, expected in zip(exported(*args), head(*args), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_equals_the_reference(export, offset):
    exported = export(Module(lambda b, s: ops.nms(b, s, 0.5, offset)[1]), some_boxes(90, 0), ({0: ANY}, {0: ANY}))
    boxes, scores = some_boxes(120, 1)
    scores = (scores * 20).round() / 20 - 0.2  # ties and negative scores
    boxes[::10, 2:] = boxes[::10, :2]  # no area
    boxes[1::10, 2:] = boxes[1::10, :2] - 20  # negative size, which ONNX would make positive
    boxes[5] = boxes[7]
    integers = (boxes / 8).round()  # some overlaps are exactly the threshold
    for case in (boxes, integers):
        (found,) = exported(case, scores)
        assert found.tolist() == reference.nms(case, scores, 0.5, offset)


def test_roi_align_equals_the_reference(export):
    x = torch.randn(2, 3, 12, 14)
    rois = torch.tensor([[0, 1.0, 1, 20, 15], [1, -9, 3, 70, 40], [0, 4, 4, 4, 4], [1, 90, 9, 99, 30]])
    negative = torch.tensor([[0.0, 90, 5, 10, 25], [0, 5, 95, 30, 6]])
    options = [(0.25, ratio, 'avg', aligned) for ratio in (0, 2) for aligned in (True, False)]
    module = Module(lambda x, rois: [ops.roi_align(x, rois, (3, 4), *o) for o in options])
    exported = export(module, (x, rois), (None, {0: ANY}))
    for found, o in zip(exported(x, rois), options, strict=True):
        torch.testing.assert_close(found.double(), reference.roi_align(x.double(), rois, (3, 4), *o), atol=2e-6, rtol=0)
    assert not exported(x, negative)[0].any()  # adaptive and aligned: nothing is sampled
    half = export(Module(lambda x, rois: ops.roi_align(x, rois, 3, 0.25)), (x.half(), rois))
    assert torch.equal(half(x.half(), rois)[0], ops.roi_align(x.half(), rois, 3, 0.25))


def test_operators_that_onnx_defines_differently_are_refused(export):
    x, rois = torch.randn(1, 2, 8, 8), torch.tensor([[0, 1.0, 1, 20, 15]])
    refusal = r"UserError'>: roi_align: pool_mode is 'max'.*allowed is 'avg'"
    with pytest.raises(torch.onnx.OnnxExporterError, match=refusal):
        export(Module(lambda x, rois: ops.roi_align(x, rois, 3, 0.25, 0, 'max')), (x, rois))
    table = translations()
    with pytest.raises(UserError, match='rounds each RoI to whole pixels first'):
        table[torch.ops.mmplugin.roi_pool.default](x, rois, 3, 3, 0.25)
    with pytest.raises(UserError, match=r'iou_threshold is 1\.5; ONNX allows 0 to 1'):
        table[torch.ops.mmplugin.nms.default](x, x, 1.5, 0)


def test_a_missing_package_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(UserError, match=r'onnxscript.*`pip install onnx onnxscript onnxruntime`'):
        translations()


def with_effective_layers(model):
    """Set random norms and layer scales: at initialization, most layers have almost no effect on the output."""
    for name, value in model.state_dict().items():
        if 'table' in name:
            value.normal_()
        elif value.dim() == 1:
            value.uniform_(0.5, 1) if name.endswith(('weight', 'var')) or 'scale' in name else value.normal_(0, 0.1)
    return model.eval().fuse()


# Other tests export all families, with the form of tests/deploy.
@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        (name, arch) if name == 'EfficientFormer' else pytest.param(name, arch, marks=pytest.mark.slow)
        for name, arch in [*FEW_BLOCKS.items(), *SMALLEST[1:]]
    ],
)
def test_a_backbone_at_a_fixed_size_equals_torch(export, name, arch):
    model = with_effective_layers(MODELS.build(dict(type=name, arch=arch)))
    x = torch.randn(1, 3, 224, 192)
    with torch.no_grad():
        exported = export(model, (torch.randn_like(x),))
        expected = model(x)  # after the export: no traced tensor may stay in a cache
    for found, level in zip(exported(x), expected, strict=True):
        torch.testing.assert_close(found, level, atol=1e-4 * float(level.abs().max()), rtol=0)
