"""Exported files: right at every size, made of standard operators, and refused where they would be wrong."""

import re
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_backbones import build
from tiny_heads import ARCHS, as_truth, sample, tiny, tiny_config
from torch import nn

import mmplugin
from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.sizes import ARCHS as ALL
from mmplugin.config_edits import dicts
from mmplugin.deploy import check, command, export
from mmplugin.deploy.check import FEATURE_TOLERANCE, Proof, prove
from mmplugin.deploy.forms import FeatureForm
from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.models import Choice, Traceable, fused_, least_sides, traceable
from mmplugin.deploy.predictor import Predictor
from mmplugin.deploy.quantize import large_losses, write_int8
from mmplugin.deploy.resizing import resizer
from mmplugin.deploy.samples import Reference, resize_rule
from mmplugin.errors import UserError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

from mmplugin.deploy.runtimes import OnnxRuntime, OpenVino, Pt2  # noqa: E402

pytestmark = pytest.mark.no_cover  # measuring the exporter's own Python code would take another half of the time
CONSTANTS = dict(resize={'fit': [1, 1]}, name='x', kind='features', input='tensor')


def exported(backbone, size, dynamic, path):
    """Export a backbone and return the file in onnxruntime."""
    found = Traceable(
        FeatureForm(backbone, None).eval(),
        ('tensor',),
        {0: (2, 3)},
        tuple(f'stride{stride}' for stride in backbone.out_strides),
        Metadata(size=size, dynamic=dynamic, min_size=least_sides(backbone, dynamic), **CONSTANTS),
    )
    export.write_onnx(export.program_of(found), found.inputs, found.outputs, found.metadata, path)
    return OnnxRuntime(path, threads=1)


def largest_error(backbone, run, size):
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = backbone(x)
    found = run(dict(tensor=x.numpy())).values()
    return max(
        float((a - torch.from_numpy(b)).abs().max() / a.abs().max().clamp(min=1))
        for a, b in zip(expected, found, strict=True)
    )


@pytest.mark.parametrize(
    ('kind', 'stages'),
    [
        ('EfficientFormerV2', (0, 1, 2)),  # without the last stage, because each takes long to trace
        pytest.param('EfficientFormerV2', None, marks=pytest.mark.slow),
        ('EfficientViTMSRA', (0, 1)),
        pytest.param('EfficientFormer', None, marks=pytest.mark.slow),  # its attention is that of V2
    ],
)
def test_a_dynamic_file_equals_torch_at_sizes_that_it_was_not_traced_at(kind, stages, tmp_path):
    backbone = build(kind, ARCHS[kind], out_indices=stages).eval().fuse()
    run = exported(backbone, (96, 512), True, tmp_path / 'x.onnx')
    for size in [(96, 512), (161, 449), (333, 500)]:
        assert largest_error(backbone, run, size) < FEATURE_TOLERANCE
    nodes = onnx.load(tmp_path / 'x.onnx').graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts['Where'] == 0  # lerp
    assert counts['GatherND'] == 0  # plain indexing takes int64 only
    assert counts['ScatterND'] == 0  # a change in place of a part of a map
    by_output = {name: node.op_type for node in nodes for name in node.output}
    assert not any(node.op_type == 'Gelu' and by_output.get(node.input[0]) == 'Transpose' for node in nodes)


@pytest.mark.slow
def test_layers_with_the_same_map_share_two_short_indices(tmp_path):
    arch = dict(
        ARCHS['EfficientFormerV2'], depths=(1, 1, 3, 4), attention_blocks=3, ratios=((2,), (2,), (2,) * 3, (2,) * 4)
    )
    exported(build('EfficientFormerV2', arch).eval().fuse(), (512, 512), False, tmp_path / 'x.onnx')
    graph = onnx.load(tmp_path / 'x.onnx').graph
    integers = onnx.TensorProto.INT32, onnx.TensorProto.INT64
    sizes = [np.prod(value.dims) for value in graph.initializer if value.data_type in integers]
    assert sorted(size for size in sizes if size > 8) == [16 * 16, 16 * 32]  # of all layers; no others than shapes
    largest = max(np.prod(value.dims) for value in graph.initializer if value.data_type == onnx.TensorProto.FLOAT)
    assert largest < 256 * 256  # no bias of all pairs


class SizeFromFloats(nn.Module):
    """What mmseg's ``Upsample`` does: the size is computed from Python floats."""

    def forward(self, tensor):
        return (F.interpolate(tensor, [int(side * 2.0) for side in tensor.shape[-2:]]),)


def test_a_model_that_fits_one_size_only_is_refused():
    metadata = Metadata(size=(64, 64), dynamic=True, min_size=(32, 32), **CONSTANTS)
    found = Traceable(SizeFromFloats().eval(), ('tensor',), {0: (2, 3)}, ('maps',), metadata)
    with pytest.raises(UserError, match=r'right for the traced image size only, because it needs .*omit --dynamic'):
        export.program_of(found)


def test_a_dynamic_file_of_windows_refuses_images_that_fit_into_one_window():
    backbone = build('EfficientViTMSRA', ARCHS['EfficientViTMSRA'])
    assert least_sides(backbone, dynamic=True) == (32, 449)
    assert least_sides(backbone, dynamic=False) == (32, 32)
    shallow = build('EfficientViTMSRA', ARCHS['EfficientViTMSRA'], out_indices=(0, 1))
    assert least_sides(shallow, dynamic=True) == (32, 225)


def test_operators_that_are_not_standard_are_refused():
    node = onnx.helper.make_node('Attend', ['a'], ['b'], domain='mmplugin')
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'x', [], []))
    with pytest.raises(UserError, match='operators of mmplugin, which no runtime has'):
        export.require_standard(model)


class Images:
    """Two images in place of a data set."""

    def __init__(self, head):
        torch.manual_seed(1)
        self.images = [as_truth(head, sample(96, 128, (192, 256))), as_truth(head, sample(90, 128, (135, 192)))]

        for i, image in enumerate(self.images):
            rows, columns = image.original
            self.images[i] = replace(image, source=cv2.resize(image.image, (columns, rows)))

    def samples(self, count=None):
        return iter(self.images[:count])


def written(head, tmp_path, dynamic=False, **choice):
    """Export a tiny model, and return it with what describes it and with the file."""
    model, classes = tiny(head)
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'weights')
    chosen = Choice(size=(96, 128), dynamic=dynamic, **choice)
    rule = dict(long=128, short=96, **({'multiple': 32} if head == 'semantic' else {}))
    found = traceable(model, classes, chosen, head, weights, rule)
    path = tmp_path / f'{head}.onnx'
    export.write_onnx(export.program_of(found), found.inputs, found.outputs, found.metadata, path)
    return model, found, path


def proof_of(run, model, found, head):
    size = None if found.metadata.dynamic else found.metadata.size
    resize = resizer(found.metadata, run.name) if found.metadata.resizes else None
    return prove(run, 'a runtime', Reference(model, size), Images(head), found.metadata, False, resize)


def test_a_file_is_proven_and_the_check_notices_a_spoiled_weight(tmp_path):
    model, found, path = written('semantic', tmp_path)
    content = onnx.load(path)
    assert [value.name for value in content.graph.input] == ['image', 'valid', 'original']
    assert [value.name for value in content.graph.output] == ['classes']
    assert {entry.domain: entry.version for entry in content.opset_import} == {'': 20}
    metadata = Metadata.from_json(OnnxRuntime(path).session.get_modelmeta().custom_metadata_map['mmplugin'])
    assert metadata.to_json() == found.metadata.to_json()
    assert metadata.classes == tuple(f'class {i}' for i in range(5))

    proof = proof_of(OnnxRuntime(path, 1), model, found, 'semantic')
    assert proof.problems == []
    assert (proof.file.lost, proof.file.total > 0) == (0, True)

    weight = max(content.graph.initializer, key=lambda value: len(value.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[: values.size // 4] *= 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(content, path)
    (problem,) = proof_of(OnnxRuntime(path, 1), model, found, 'semantic').problems
    assert 'pixels differ (PyTorch after a change of its input by 1e-06: 0)' in problem


@pytest.mark.parametrize(
    ('dynamic', 'originals'),
    [
        (False, [(192, 256), (150, 200), (192, 240)]),  # others are padded to the size of the file, which shows
        pytest.param(True, [(192, 240), (200, 150), (60, 200)], marks=pytest.mark.slow),
    ],
    ids=['fixed', 'dynamic'],
)
def test_a_file_finds_what_the_checkpoint_finds_where_both_resize_to_the_same_size(dynamic, originals, tmp_path):
    model, found, path = written('semantic', tmp_path, dynamic)
    cfg = tiny_config('semantic')
    for step in dicts([cfg.test_dataloader]):
        if step.get('type') == 'Resize':
            step['scale'] = (128, 96)
    assert found.metadata.resize == (resize_rule(cfg) if dynamic else dict(fit=[96, 128], multiple=32))
    meta = dict(dataset_meta=dict(classes=found.metadata.classes))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'x.pth')
    checkpoint, file = mmplugin.Predictor(cfg, tmp_path / 'x.pth', device='cpu'), Predictor(path, threads=1)
    lost = total = 0
    for original in originals:
        image = as_truth('semantic', sample(*original, original)).image
        one, other = checkpoint(image).class_map, file(image).class_map
        assert len(np.unique(one)) > 1
        lost, total = lost + int((one != other).sum()), total + one.size
    assert lost <= 1e-5 * total  # two classes that are almost equal; sizes that differ change every second one


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True], ids=['fixed', 'dynamic'])
@pytest.mark.parametrize('head', ['retina', 'mask', 'semantic'])
def test_whole_models_are_proven_in_both_runtimes(head, dynamic, tmp_path):
    model, found, path = written(head, tmp_path, dynamic)
    export.write_openvino(path, found.metadata, tmp_path / 'x.xml')
    for run in (OnnxRuntime(path, 1), OpenVino(path, 1), OpenVino(tmp_path / 'x.xml', 1)):
        proof = proof_of(run, model, found, head)
        assert proof.problems == [], run
        assert proof.file.total > 0


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True], ids=['fixed', 'dynamic'])
@pytest.mark.parametrize('head', ['mask', 'semantic'])
def test_files_that_resize_and_paste_are_proven_in_both_runtimes(head, dynamic, tmp_path):
    model, found, path = written(head, tmp_path, dynamic, resizes=True, full_masks=head == 'mask')
    assert [value.name for value in onnx.load(path).graph.input] == ['image']
    for run in (OnnxRuntime(path, 1), OpenVino(path, 1)):
        proof = proof_of(run, model, found, head)
        assert proof.problems == [], run
        assert proof.file.total > 0
    image = next(Images(head).samples()).source
    prediction = Predictor(path, score=0, runtime='onnxruntime')(image)
    maps = prediction.masks if head == 'mask' else prediction.class_map[None]
    assert maps.shape[1:] == image.shape[:2]


@pytest.mark.slow
def test_a_program_is_proven_in_pytorch(tmp_path):
    model, found, _ = written('retina', tmp_path)
    export.write_pt2(export.program_of(found), found.metadata, tmp_path / 'x.pt2')
    assert proof_of(Pt2(tmp_path / 'x.pt2', found.outputs), model, found, 'retina').problems == []


@pytest.mark.slow
@pytest.mark.parametrize('size', [(224, 224), (512, 512), (333, 500)], ids=lambda size: 'x'.join(map(str, size)))
@pytest.mark.parametrize('name', ALL)
def test_every_backbone_at_a_fixed_size_equals_torch(name, size, tmp_path):
    family, arch = ALL[name]
    backbone = build(family.__name__, arch).eval().fuse()
    assert largest_error(backbone, exported(backbone, size, False, tmp_path / 'x.onnx'), size) < FEATURE_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
def test_every_backbone_at_any_size_equals_torch(name, tmp_path):
    family, arch = ALL[name]
    backbone = build(family.__name__, arch).eval().fuse()
    run = exported(backbone, (96, 512), True, tmp_path / 'x.onnx')
    for size in [(512, 512), (333, 500), (161, 480)]:
        assert largest_error(backbone, run, size) < FEATURE_TOLERANCE


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--what', 'neck', '--input', 'image'], '--what neck takes tensors; omit --input image'),
        (['--what', 'backbone', '--logits'], '--logits is for whole models; omit it with --what backbone'),
        (['--out', 'x.pth'], r'--out x.pth: a file of the format onnx must end in \.onnx'),
        (['--score-thr', '2'], '--score-thr 2.0: expected a number from 0 to 1'),
        (['--with-resize', '--format', 'pt2'], '--with-resize is for whole models that take images, in the formats'),
        (['--masks', 'full', '--input', 'tensor'], '--masks full is for whole models that take images; omit'),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(argv, message):
    with pytest.raises(UserError, match=message):
        command.main(['retinanet_v2_s0', 'missing.pth', *argv])


def test_a_head_without_a_form_is_refused_with_what_is_possible():
    model, classes = tiny('retina')
    model.bbox_head.__class__ = type('ATSSHead', (type(model.bbox_head),), {})
    with pytest.raises(UserError, match=r'bbox_head is a ATSSHead.*supported: RetinaNet.*Use --what backbone or'):
        traceable(model, classes, Choice(), 'x', __file__, {})


def test_fusing_removes_every_norm_of_the_pyramid_and_the_heads():
    model, _ = tiny('mask')
    fused = fused_(model)
    assert not [name for name, part in fused.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert set(FAMILIES.values()) >= {type(fused.backbone)}


@pytest.mark.parametrize(
    ('before', 'after', 'problem'),
    [
        ({'coco/bbox_mAP': 0.366}, {'coco/bbox_mAP': 0.034}, r'box AP falls from 0\.3660 to 0\.0340'),
        ({'coco/bbox_mAP': 0.366}, {'coco/bbox_mAP': float('nan')}, 'box AP falls'),
        ({'coco/segm_mAP': 0.284}, {}, 'mask AP falls'),
        ({'mIoU': 59.2}, {'mIoU': 58.1}, r'mIoU % falls from 59\.2.*--max-drop is 0\.01'),
        ({'mIoU': 59.2, 'aAcc': 90}, {'mIoU': 58.3, 'aAcc': 50}, None),
    ],
)
def test_a_loss_by_8_bits_that_is_too_large_is_a_problem(before, after, problem):
    found = large_losses(Proof('a runtime', before=before, after=after), max_drop=0.01)
    assert found == [] if problem is None else re.search(problem, found[0])


def test_equal_scores_may_come_in_any_order(monkeypatch):
    """Where features are zero, all anchors of a shape have the same score, and NMS keeps the first one."""
    model, _ = tiny('mask')
    nn.init.zeros_(model.rpn_head.rpn_conv.weight)
    reference = Reference(model, (96, 128))
    metadata = Metadata(size=(96, 128), dynamic=False, min_size=(32, 32), **{**CONSTANTS, 'kind': 'masks'})
    monkeypatch.setattr(check, 'as_data_sample', lambda found, sample, metadata: reference(sample, check.NOISE, 5))
    proof = prove(lambda inputs: {}, 'a runtime', reference, Images('mask'), metadata, with_metrics=False)
    assert proof.file.lost > 0.1 * proof.file.total
    assert proof.problems == []


@pytest.mark.slow
def test_a_file_in_8_bits_is_smaller_and_nearly_equal(tmp_path):
    model, found, path = written('semantic', tmp_path)
    images = [image.inputs(found.metadata.size) for image in Images('semantic').samples()]
    write_int8(path, images, found.metadata, tmp_path / 'int8.onnx')
    run = OnnxRuntime(tmp_path / 'int8.onnx', 1)
    assert Metadata.from_json(run.session.get_modelmeta().custom_metadata_map['mmplugin']).int8
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / 'int8.onnx').graph.node)
    assert kinds['QuantizeLinear'] > 10
    proof = proof_of(run, model, found, 'semantic')
    assert 0 < proof.file.lost < 0.2 * proof.file.total
