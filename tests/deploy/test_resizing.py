"""Resizing and pasting inside of a file: as OpenCV resizes, and as numpy pastes."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.image import imrescale, imresize_to_multiple

from mmplugin.deploy import export
from mmplugin.deploy.boxes import paste
from mmplugin.deploy.masks import paste_masks
from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.predictor import Predictor

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmplugin.deploy.resizing import add_resizing_, front  # noqa: E402
from mmplugin.deploy.runtimes import OnnxRuntime, OpenVino  # noqa: E402

SIZE, RULE = (96, 128), dict(long=128, short=96)
IMAGES = [(96, 128), (427, 640), (640, 427), (33, 47), (1080, 1920), (500, 20), (97, 129), (1, 1)]


def described(dynamic: bool, multiple: int = 1, **other) -> Metadata:
    resize = (RULE if dynamic else dict(fit=SIZE)) | (dict(multiple=multiple) if multiple > 1 else {})
    return Metadata(
        name='x', kind='classes', input='image', size=SIZE, dynamic=dynamic, min_size=(1, 1), resize=resize, **other
    )


@pytest.mark.parametrize('multiple', [1, 32])
@pytest.mark.parametrize('dynamic', [False, True], ids=['fixed', 'dynamic'])
@pytest.mark.parametrize('runtime', [OnnxRuntime, OpenVino])
def test_resizing_in_a_file_equals_opencv_within_rounding(runtime, dynamic, multiple, tmp_path):
    if runtime is OpenVino:
        pytest.importorskip('openvino')
    onnx.save(front(described(dynamic, multiple)), tmp_path / 'front.onnx')
    run, random = runtime(tmp_path / 'front.onnx', 1), np.random.default_rng(0)
    for rows, columns in IMAGES:
        image = random.integers(0, 256, (rows, columns, 3), np.uint8)
        scale = max(SIZE), min(SIZE)
        if not dynamic:
            factor = min(SIZE[0] / rows, SIZE[1] / columns)
            scale = max(rows, columns) * factor, min(rows, columns) * factor
        expected = imrescale(image, scale)
        if multiple > 1:
            expected = imresize_to_multiple(expected, multiple, scale_factor=1)
        height, width = expected.shape[:2]
        found = run(dict(image=image))
        assert found['valid'].tolist() == [height, width]
        assert found['original'].tolist() == [rows, columns]
        assert found['resized'].shape == ((height, width, 3) if dynamic else (*SIZE, 3))
        difference = np.abs(found['resized'][:height, :width] - expected.astype(int))
        assert difference.max() <= (1 if multiple == 1 else 2)
        assert difference.mean() < 0.3  # cut digits would change half of the values
        assert not found['resized'][height:].any()
        assert not found['resized'][:, width:].any()


def test_a_file_that_resizes_takes_images_as_they_are(tmp_path):
    helper = onnx.helper
    sizes = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [2]) for name in ('valid', 'original')]
    image = helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, [*SIZE, 3])
    nodes = [  # the blue channel, as large as the original
        helper.make_node('Gather', ['image', 'blue'], ['channel'], axis=2),
        helper.make_node('Pad', ['channel', 'pads'], ['large']),
        helper.make_node('Slice', ['large', 'zeros', 'original'], ['classes']),
    ]
    constants = dict(blue=np.array(0), pads=np.array([0, 0, 9, 9]), zeros=np.array([0, 0]))
    output = helper.make_tensor_value_info('classes', onnx.TensorProto.UINT8, [None, None])
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'x', [image, *sizes], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    metadata = described(False, resizes=True, classes=tuple(f'class {i}' for i in range(256)))
    add_resizing_(model, metadata)
    model.metadata_props.add(key='mmplugin', value=metadata.to_json())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / 'x.onnx')
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    expected = cv2.resize(image, SIZE[::-1])[:48, :64, 0].astype(int)
    assert np.abs(Predictor(tmp_path / 'x.onnx')(image).class_map - expected).max() <= 1


HEIGHT, WIDTH = 90, 130


def hand_made():
    """Return grids and boxes, some of them partly outside of the image or without extent."""
    boxes = torch.tensor(
        [
            [10, 20, 60, 70],
            [10.3, 20.7, 60.2, 70.9],
            [-30, -20, 40.5, 50],
            [100, 60, 200, 150],
            [-50, -50, 300, 200],
            [-40, -40, -5, -5],  # beside the image
            [50, 40, 50, 60],  # without a width
            [50.5, 40.5, 50.5, 40.5],  # a point at the center of a pixel
            [33.2, 40.1, 33.9, 40.6],  # less than a pixel
        ]
    )
    smooth = torch.rand(len(boxes), 1, 7, 7, generator=torch.Generator().manual_seed(0))
    grids = torch.nn.functional.interpolate(smooth, (28, 28), mode='bilinear')[:, 0]
    return torch.cat([grids, torch.ones_like(grids)]), boxes.repeat(2, 1)


@pytest.mark.parametrize('threshold', [0.5, 0.3])
def test_masks_that_a_form_pastes_are_those_of_numpy(threshold):
    grids, boxes = hand_made()
    found = paste(grids, boxes, torch.tensor([HEIGHT, WIDTH]), threshold)
    expected = paste_masks(grids.numpy(), boxes.numpy(), HEIGHT, WIDTH, threshold)
    assert np.array_equal(found.numpy(), expected)
    assert 0 < expected[:5].mean() < 1
    assert paste(grids[:0], boxes[:0], torch.tensor([HEIGHT, WIDTH]), 0.5).shape == (0, HEIGHT, WIDTH)


class Paste(torch.nn.Module):
    def forward(self, grids, boxes, original):
        return (paste(grids, boxes, original, 0.5),)


@pytest.mark.slow
@pytest.mark.no_cover
def test_masks_that_a_file_pastes_are_those_of_numpy(tmp_path):
    grids, boxes = hand_made()
    count = torch.export.Dim('count', min=2)
    inputs = grids, boxes, torch.tensor([HEIGHT, WIDTH])
    program = torch.export.export(Paste(), inputs, dynamic_shapes=({0: count}, {0: count}, None), strict=False)
    export.write_onnx(program, ('grids', 'boxes', 'original'), ('masks',), described(False), tmp_path / 'x.onnx')
    for runtime in (OnnxRuntime, OpenVino):
        run = runtime(tmp_path / 'x.onnx', 1)
        for size in ((HEIGHT, WIDTH), (200, 77)):
            found = run(dict(grids=grids.numpy(), boxes=boxes.numpy(), original=np.array(size)))['masks']
            assert np.array_equal(found, paste_masks(grids.numpy(), boxes.numpy(), *size, 0.5))
