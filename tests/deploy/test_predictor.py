"""The predictor of exported files: equal to that of checkpoints, needs numpy and Pillow only, and names mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

import mmplugin
from mmplugin import cli, palette
from mmplugin.deploy import command, export, predictor
from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.predictor import Prediction, Predictor, PredictorError, ahead, openvino_core
from mmplugin.errors import UserError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SIZE = (48, 64)
MODULE = Path(predictor.__file__)


def write_file(path: Path, kind: str, outputs: dict, **metadata) -> Path:
    """Write a file without a network: constants, or the blue channel of its input in place of None."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    inputs = [
        helper.make_tensor_value_info('image', onnx.TensorProto.UINT8, ['height', 'width', 3]),
        helper.make_tensor_value_info('valid', onnx.TensorProto.INT64, [2]),
        helper.make_tensor_value_info('original', onnx.TensorProto.INT64, [2]),
    ]
    nodes, constants, results = [], [numpy_helper.from_array(np.array(0), 'blue')], []
    for name, value in outputs.items():
        if value is None:
            nodes.append(helper.make_node('Gather', ['image', 'blue'], [name], axis=2))
            value = np.zeros((1, 1), np.uint8)
        else:
            constants.append(numpy_helper.from_array(value, f'constant {name}'))
            nodes.append(helper.make_node('Identity', [f'constant {name}'], [name]))
        kind_of = helper.np_dtype_to_tensor_dtype(value.dtype)
        results.append(helper.make_tensor_value_info(name, kind_of, [None] * value.ndim))
    graph = helper.make_graph(nodes, 'x', inputs, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    described = dict(size=SIZE, dynamic=False, min_size=(32, 32), resize=dict(fit=SIZE), input='image', **metadata)
    if metadata.get('name') != 'foreign':
        text = Metadata(**(dict(name='x', kind=kind) | described)).to_json()
        model.metadata_props.add(key='mmplugin', value=text)
    onnx.save(model, path)
    return path


def mask_file(path: Path, **metadata) -> Path:
    """Write a file that finds the same three objects in every image."""
    random = np.random.default_rng(0)
    outputs = dict(
        boxes=np.array([[2, 3, 30, 40], [-5, -4, 20, 30], [10.5, 10.2, 60, 44]], np.float32),
        scores=np.array([0.9, 0.5, 0.2], np.float32),
        labels=np.array([1, 0, 1]),
        masks=random.random((3, 28, 28), np.float32),
    )
    return write_file(path, 'masks', outputs, classes=('cat', 'dog'), mask_threshold=0.5, **metadata)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """Return a folder with objects.onnx, echo.onnx, and images/."""
    folder = tmp_path_factory.mktemp('files')
    mask_file(folder / 'objects.onnx')
    write_file(folder / 'echo.onnx', 'classes', dict(classes=None), classes=tuple(f'class {i}' for i in range(256)))
    (folder / 'images/deeper').mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ('a.png', 'a.jpg', 'deeper/b.png'):
        coarse = random.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / 'images' / name), cv2.resize(coarse, SIZE[::-1]))
    return folder


# Pieces, against other programs


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((480, 640), (384, 512)),
        ((427, 640), (800, 1199)),
        ((33, 47), (200, 20)),
        ((90, 90), (45, 45)),
        ((1, 3), (9, 9)),
    ],
)
def test_resizing_in_numpy_equals_opencv_within_one_gray_level(old, new):
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(predictor.resize_in_numpy(image, *new) - expected).max() <= 1


def test_run_lengths_equal_those_of_pycocotools():
    random = np.random.default_rng(0)
    masks = [random.random((30, 41)) < share for share in (0.02, 0.5, 0.98)]
    masks += [
        np.zeros((5, 7), bool),
        np.ones((5, 7), bool),
        np.ones((1, 1), bool),
        np.kron(masks[0], np.ones((40, 40))),
    ]
    for mask in masks:
        expected = coco_masks.encode(np.asfortranarray(mask, np.uint8))
        assert predictor.run_lengths(mask) == dict(size=expected['size'], counts=expected['counts'].decode())


def test_colors_and_version_are_those_of_mmplugin():
    assert predictor.palette(150) == palette.palette(150)
    assert predictor.__version__ == mmplugin.__version__
    assert Metadata.__dataclass_fields__['format'].default == predictor.FORMAT


def test_files_are_read_as_opencv_reads_them(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(image).save(tmp_path / 'turned.jpg', exif=exif)
    Image.fromarray(image[..., 0]).save(tmp_path / 'gray.png')
    Image.fromarray(np.dstack([image, image[..., 0]])).save(tmp_path / 'transparent.png')
    Image.fromarray(image).quantize(16).save(tmp_path / 'colors.png')
    cv2.imwrite(str(tmp_path / 'deep.png'), image.astype(np.uint16) << 8)
    cv2.imwrite(str(tmp_path / 'deep_gray.png'), image[..., 0].astype(np.uint16) << 8)
    for path in tmp_path.iterdir():
        assert np.array_equal(predictor.read_image(path), cv2.imread(str(path))), path.name


def test_names_are_written_inside_of_regions_and_outlines_inside_of_masks():
    image = np.full((300, 400, 3), 128, np.uint8)
    mask = np.zeros((300, 400), bool)
    mask[50:200, 60:90] = True
    assert mask[predictor._deepest(mask)]
    row, column = predictor._deepest(np.ones((300, 400), bool))
    assert abs(row - 150) < 8
    assert 140 < column < 260
    found = Prediction(
        image, ('a',), boxes=np.array([[60, 50, 90, 200]]), scores=np.ones(1), labels=np.zeros(1, int), masks=mask[None]
    )
    changed = (np.asarray(found.draw()) != 128).any(2)
    assert changed[mask].all()
    assert not changed[210:].any()


# Predictions


def test_an_image_reaches_the_file_resized_and_padded(files, monkeypatch):
    run = Predictor(files / 'echo.onnx')
    image = cv2.imread(str(files / 'images/a.png'))
    assert np.array_equal(run(image).class_map, image[..., 0])
    assert run(Image.fromarray(image[..., ::-1])).names == run(files / 'images/a.png').names
    monkeypatch.setitem(sys.modules, 'cv2', None)
    found = run.prepare(np.kron(image, np.ones((2, 4, 1), np.uint8))).inputs['image']  # 96x256 becomes 24x64
    assert found.shape == (*SIZE, 3)
    assert found[:24].any()
    assert not found[24:].any()


def test_objects_below_the_score_are_dropped_and_masks_are_images(files):
    image = np.zeros((*SIZE, 3), np.uint8)
    found = Predictor(files / 'objects.onnx')(image)
    assert found.names == ['dog', 'cat']
    assert found.masks.shape == (2, *SIZE)
    assert not found.masks[0][41:].any()
    assert 0.3 < found.masks[0][3:40, 2:30].mean() < 0.7
    assert len(Predictor(files / 'objects.onnx', score=0.1)([image, image])[1]) == 3


@pytest.mark.skipif(not hasattr(signal, 'SIGCHLD'), reason='a signal of POSIX')
def test_signals_work_after_models_of_openvino_are_deleted(files):
    """A core of OpenVINO left freed memory as the signal stack, so that the end of any child process crashed Python."""
    pytest.importorskip('openvino')
    code = f"""
import faulthandler, signal, subprocess, sys
from mmplugin.deploy.predictor import Predictor
from mmplugin.deploy.runtimes import OpenVino
faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: print('a child ended', flush=True))
path = {str(files / 'objects.onnx')!r}
models = [make() for make in (lambda: Predictor(path, runtime='openvino'), lambda: OpenVino(path)) * 2]
while models:
    del models[0]
subprocess.run([sys.executable, '-c', ''], check=True)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, 'a child ended\n'), done.stderr


def test_both_runtimes_and_both_forms_of_a_file_give_the_same(files, tmp_path):
    openvino = pytest.importorskip('openvino')
    model = openvino_core().read_model(str(files / 'objects.onnx'))
    expected = Predictor(files / 'objects.onnx', runtime='onnxruntime')
    model.set_rt_info(json.dumps(expected.metadata), 'mmplugin')
    openvino.save_model(model, tmp_path / 'objects.xml', compress_to_fp16=False)
    image = np.zeros((*SIZE, 3), np.uint8)
    for run in (Predictor(files / 'objects.onnx', runtime='openvino'), Predictor(tmp_path / 'objects.xml')):
        assert run.metadata == expected.metadata
        for part in ('boxes', 'scores', 'labels', 'masks'):
            assert np.array_equal(getattr(run(image), part), getattr(expected(image), part))


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmplugin', 'torch', 'mmengine', 'mmcv', 'cv2', 'rich', 'pycocotools', 'scipy'):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import predict
sys.exit(predict.main(sys.argv[1:]))
"""


@pytest.mark.parametrize('name', ['objects', 'echo'])
def test_the_lone_file_writes_what_the_command_writes(name, files, tmp_path):
    shutil.copy(MODULE, tmp_path / 'predict.py')
    (tmp_path / 'run.py').write_text(ALONE)
    arguments = [str(files / f'{name}.onnx'), str(files / 'images'), '--out-dir']
    run = subprocess.run(
        [sys.executable, tmp_path / 'run.py', *arguments, tmp_path / 'alone'], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert '3 images in' in run.stdout
    assert cli.main(['predict', *arguments, str(tmp_path / 'command')]) == 0
    written = {
        folder: {path.relative_to(tmp_path / folder).as_posix(): path.read_bytes()
                 for path in sorted((tmp_path / folder).rglob('*')) if path.is_file()}
        for folder in ('alone', 'command')
    }  # fmt: skip
    assert len(written['alone']) == {'objects': 4, 'echo': 7}[name]
    assert written['alone'] == written['command']


def test_a_video_becomes_a_video_of_the_same_length(files, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 12.0, SIZE[::-1])
    for value in range(5):
        writer.write(np.full((*SIZE, 3), 40 * value, np.uint8))
    writer.release()
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    assert predictor.main([str(files / 'objects.onnx'), str(tmp_path), '--out-dir', str(tmp_path / 'out')]) == 0
    assert f'Not read: 1\n  {tmp_path / "bad.jpg"} is not an image' in capsys.readouterr().out
    capture, count = cv2.VideoCapture(str(tmp_path / 'out/clip.mp4')), 0
    while capture.read()[0]:
        count += 1
    assert count == 5
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [image['frame_id'] for image in content['images']] == list(range(5))


def test_a_thread_computes_only_a_few_items_in_advance_and_passes_errors_on():
    started, used = [], []

    def items():
        for i in range(50):
            started.append(i)
            yield i
        raise ValueError('the end')

    def use():
        for item in ahead(items(), 2):
            used.append(item)
            assert len(started) <= len(used) + 3  # one at each end of the queue

    with pytest.raises(ValueError, match='the end'):
        use()
    assert used == list(range(50))
    before = threading.active_count()
    stream = ahead(items(), 2)
    next(stream)
    stream.close()
    assert threading.active_count() == before


# Mistakes


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('epoch_1.pth', r'is a checkpoint.*`mmplugin export CONFIG .*epoch_1.pth` writes a file'),
        ('x.pt2', 'runs in PyTorch only; export the model with --format onnx or openvino'),
        ('x.jpg', 'must be a file that `mmplugin export` wrote: NAME.onnx, or NAME.xml'),
        ('missing.onnx', 'missing.onnx does not exist'),
        ('empty.onnx', 'empty.onnx is empty'),
        ('damaged.onnx', 'onnxruntime cannot read .*damaged.onnx; export it again'),
        ('foreign.onnx', 'foreign.onnx was not written by `mmplugin export`'),
        ('tensor.onnx', 'takes normalized tensors and returns boxes.*export the whole model without --input tensor'),
        ('newer.onnx', r'metadata of the format 2, and this version \(.*\) reads 1; update mmplugin-runtime'),
        ('incomplete.onnx', r'the metadata of .*incomplete.onnx are damaged: no resize; export it again'),
        ('nested.onnx', r'the metadata of .*nested.onnx are damaged; export it again'),
    ],
)
def test_what_is_not_an_exported_file_is_refused(name, message, tmp_path):
    path = tmp_path / name
    if name == 'foreign.onnx':
        mask_file(path, name='foreign')
    elif name == 'tensor.onnx':
        mask_file(path)
        spoil(path, input='tensor', kind='boxes')
    elif name == 'newer.onnx':
        mask_file(path)
        spoil(path, format=2)
    elif name == 'incomplete.onnx':
        mask_file(path)
        spoil(path, resize=None)
    elif name == 'nested.onnx':
        mask_file(path)
        spoil(path, '[' * 100_000)
    elif name == 'damaged.onnx':
        path.write_bytes(b'no model')
    elif name != 'missing.onnx':
        path.touch()
    with pytest.raises(PredictorError, match=message):
        Predictor(path)


def spoil(path: Path, text: str = '', **changes) -> None:
    """Change the metadata of a file; an entry that becomes None is removed."""
    model = onnx.load(path)
    (entry,) = model.metadata_props
    content = json.loads(entry.value) | changes
    entry.value = text or json.dumps({key: value for key, value in content.items() if value is not None})
    onnx.save(model, path)


NAN = float('nan')


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('kind', ['nonsense', 5, []]),
        ('classes', [5, {}, [], 'ab', [1, 2], [['a']], ['x' * 2000], ['x'] * 200_000]),
        (
            'size',
            [5, [48], [-5, 64], [0, 64], ['a', 'b'], [NAN, 64], [48.5, 64], [1 << 40, 1], [10**400, 1], SIZE[::-1]],
        ),
        ('min_size', [5, [], ['a', 1], [NAN, 1], [-1, 32]]),
        ('resize', [5, [], 'fit', {}, dict(fit=5), dict(fit=[48]), dict(fit=[10**6, 64]), dict(long=64, short=48)]),
        ('dynamic', ['x', 1]),
        ('logits', ['x', 1]),
        ('mask_threshold', ['x', NAN, 10**400, []]),
    ],
)
def test_metadata_that_no_export_writes_are_refused(name, values, tmp_path):
    for value in values:
        path = mask_file(tmp_path / 'x.onnx')
        spoil(path, **{name: value})
        with pytest.raises(PredictorError, match=rf'the metadata of .*x.onnx are damaged: .*{name}'):
            Predictor(path)
    for rule in (dict(long=NAN, short=5), dict(long='a', short=5), dict(long=10**400, short=5), dict(long=5)):
        path = mask_file(tmp_path / 'x.onnx')
        spoil(path, dynamic=True, resize=rule)
        with pytest.raises(PredictorError, match=r'the metadata of .*x.onnx are damaged: resize'):
            Predictor(path)


def test_a_file_does_not_choose_how_much_memory_an_image_takes(tmp_path):
    path = mask_file(tmp_path / 'x.onnx')
    spoil(path, dynamic=True, resize=dict(long=100_000, short=100_000))
    with pytest.raises(
        PredictorError, match='an array of 48x64x3 becomes 100000x75000 pixels, but files take up to 8192'
    ):
        Predictor(path)(np.zeros((48, 64, 3), np.uint8))
    spoil(path, '[' + '{},' * 3_000_000 + '{}]')
    with pytest.raises(PredictorError, match=r'the metadata of .*x.onnx are damaged; export it again'):
        Predictor(path)


ONE = dict(
    boxes=np.array([[2, 3, 30, 40]], np.float32),
    scores=np.array([0.9], np.float32),
    labels=np.array([1]),
    masks=np.full((1, 28, 28), 0.5, np.float32),
)


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('boxes', [np.zeros((2, 4), np.float32), np.array(1.0), np.array([['a'] * 4], object),
                   *(np.full((1, 4), value, np.float32) for value in (NAN, np.inf, 1e30))]),
        ('scores', [np.zeros(2, np.float32), np.array(1.0), np.array([NAN]), np.array([5.0]), np.array([True])]),
        ('labels', [np.array([-1]), np.array([2]), np.array([1 << 40]), np.array([1.0]), np.array(1)]),
        ('masks', [np.zeros((1, 28, 5), np.float32), np.zeros((1, 0, 0), np.float32), np.full((1, 2, 2), NAN),
                   np.zeros((1, 600, 600), np.float32), np.full((1, 2, 2), 7.0), np.zeros((1, 1, 28, 28), np.float32)]),
        ('classes', [np.zeros((3, 3), np.uint8), np.zeros((*SIZE, 1), np.uint8), np.zeros(SIZE, np.float32),
                     np.full(SIZE, 2, np.uint8), np.full(SIZE, -1), np.full(SIZE, 'x', object), np.array(0)]),
        ('logits', [np.zeros((2, 3, 3), np.float32), np.zeros((5, *SIZE), np.float32), np.zeros((0, *SIZE), np.float32),
                    np.full((2, *SIZE), NAN, np.float32)]),
    ],
)  # fmt: skip
def test_results_that_no_export_returns_are_refused(name, values, tmp_path):
    for value in [None, *values]:
        kind = 'masks' if name in ONE else 'classes'
        outputs = (ONE if name in ONE else {}) | {name: value}
        if value is None:
            outputs = {('other' if key == name else key): part for key, part in outputs.items()}
        path, classes = tmp_path / 'x.onnx', ('cat', 'dog')
        more = dict(mask_threshold=0.5) if name in ONE else dict(logits=name == 'logits')
        write_file(path, kind, outputs, classes=classes, **more)
        with pytest.raises(PredictorError, match=r'x.onnx returns .*, which no file of `mmplugin export` does'):
            Predictor(path)(np.zeros((*SIZE, 3), np.uint8))
    assert cli.main(['predict', str(path), str(MODULE.parents[2] / 'docs/images'), '--out-dir', str(tmp_path)]) == 2


def test_a_file_that_takes_something_else_is_one_message(tmp_path):
    path = mask_file(tmp_path / 'x.onnx')
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, path)
    with pytest.raises(PredictorError, match=r'x.onnx cannot be run by onnxruntime .*; export it again'):
        Predictor(path)(np.zeros((*SIZE, 3), np.uint8))


@pytest.mark.parametrize('overlong', [False, True])
def test_tensors_in_other_files_are_refused(overlong, tmp_path):
    (tmp_path / 'secret').write_bytes(bytes(64))
    path = mask_file(tmp_path / 'x.onnx')
    model = onnx.load(path)
    tensor = model.graph.initializer.add(name='t', dims=[8], data_type=onnx.TensorProto.UINT8)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value='../../../../../../etc/passwd')
    content = model.SerializeToString()
    if overlong:  # the same message, with a length of two bytes in place of one
        tensor.external_data[0].key = 'locationX'
        content = model.SerializeToString().replace(b'\x09locationX', b'\x88\x00location')
    path.write_bytes(content)
    assert onnx.load(path, load_external_data=False).graph.initializer[-1].external_data[0].key == 'location'
    with pytest.raises(PredictorError, match=r'x.onnx keeps tensors in other files'):
        Predictor(path)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_a_changed_byte_is_noticed(suffix, tmp_path):
    source, path = mask_file(tmp_path / 'source.onnx'), tmp_path / f'x{suffix}'
    model = onnx.load(source)
    metadata = Metadata.from_json(model.metadata_props[0].value)
    if suffix == '.onnx':
        export.save_onnx(model, metadata, path)
    else:
        export.write_openvino(source, metadata, path)
    Predictor(path)
    for part in (path, path.with_suffix('.bin')) if suffix == '.xml' else (path,):
        content = part.read_bytes()
        for position in range(10, len(content), len(content) // 20):
            changed = bytearray(content)
            changed[position] ^= 1
            part.write_bytes(changed)
            with pytest.raises(PredictorError, match=r'damaged|cannot read|keeps tensors'):
                Predictor(path)
        part.write_bytes(content)
    Predictor(path)


def test_a_pipe_beside_an_openvino_file_is_not_waited_for(tmp_path):
    (tmp_path / 'x.xml').write_text('<net/>')
    os.mkfifo(tmp_path / 'x.bin')
    with pytest.raises(PredictorError, match=r'x.bin is not a regular file'):
        Predictor(tmp_path / 'x.xml')


def test_no_control_characters_of_a_file_reach_the_terminal(files, tmp_path, capfd):
    path = mask_file(tmp_path / 'x.onnx')
    spoil(path, classes=['\x1b[31mred\x07', 'b\nc'])
    (tmp_path / 'bad\x1b[31m.jpg').write_bytes(b'no image')
    paths = [
        str(path),
        str(files / 'images/a.png'),
        str(tmp_path / 'bad\x1b[31m.jpg'),
        '--out-dir',
        str(tmp_path / 'out'),
    ]
    assert predictor.main(paths) == 0
    assert cli.main(['predict', *paths]) == 0
    spoil(path, format='\x1b[31m')
    assert predictor.main(paths) == 2
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node('No\x1b[31m', ['image'], ['x']))  # an error that onnxruntime logs
    onnx.save(model, path)
    assert predictor.main(paths) == 2
    printed = ''.join(capfd.readouterr())
    assert 'red' in printed
    assert all(character.isprintable() or character == '\n' for character in printed)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((4, 4, 3)), 'type float64; expected uint8 or uint16'),
        (np.zeros((4, 4, 2), np.uint8), 'expected height x width x 1, 3 or 4 channels'),
        (np.zeros((1, 4000, 3), np.uint8), 'an array of 1x4000x3 cannot be resized for the model'),
        ('nowhere.jpg', 'nowhere.jpg does not exist'),
        (Path(__file__).parent, 'is a folder'),
        (Path(__file__), 'is not an image that can be decoded, or damaged'),
    ],
    ids=str,
)
def test_what_is_not_an_image_is_refused(image, message, files):
    with pytest.raises(PredictorError, match=message):
        Predictor(files / 'objects.onnx')(image)


def test_images_for_which_a_dynamic_file_would_be_wrong_are_refused(tmp_path):
    path = mask_file(tmp_path / 'x.onnx')
    spoil(path, dynamic=True, min_size=[32, 449], resize=dict(long=512, short=448))
    run = Predictor(path)
    assert run.prepare(np.zeros((400, 600, 3), np.uint8)).inputs['image'].shape == (341, 512, 3)
    with pytest.raises(PredictorError, match=r'becomes 448x448 pixels, and .* is right from 32 .*449.*a fixed size'):
        run(np.zeros((100, 100, 3), np.uint8))


def test_the_commands_end_with_one_message(files, tmp_path, capsys):
    image = str(files / 'images/a.png')
    for argv in (['--out-dir', str(files / 'images')], ['--score', '2'], ['--threads', '-1']):
        (files / 'images/a.jpg').touch()
        paths = [str(files / 'images/a.jpg')] if argv[0] == '--out-dir' else [image]
        assert predictor.main([str(files / 'objects.onnx'), *paths, *argv]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main(['predict', str(files / 'objects.onnx'), image, '--mini', '--out-dir', str(tmp_path)]) == 2
    assert '--mini is for checkpoints; omit it with' in capsys.readouterr().err
    assert cli.main(['predict', str(tmp_path / 'no.onnx'), image, '--out-dir', str(tmp_path)]) == 2
    assert 'no.onnx does not exist' in capsys.readouterr().err


# The second distribution, and the file beside an export


def test_the_distribution_is_this_module():
    root = MODULE.parents[2]
    assert (root / 'runtime/mmplugin_runtime.py').resolve() == MODULE.resolve()
    assert 'mmplugin' not in {line.split()[1].partition('.')[0] for line in MODULE.read_text().splitlines()
                              if line.startswith(('import ', 'from '))}  # fmt: skip


def test_a_program_of_the_user_is_not_overwritten(tmp_path):
    (tmp_path / 'predict.py').write_text('print("mine")\n')
    argv = ['retinanet_v2_s0', 'missing.pth', '--with-predictor', '--out', str(tmp_path / 'x.onnx')]
    with pytest.raises(UserError, match=r'--with-predictor: .*predict.py exists and is another program'):
        command.main(argv)
    with pytest.raises(UserError, match=r'--with-predictor is for whole models that take images'):
        command.main(['retinanet_v2_s0', 'missing.pth', '--with-predictor', '--what', 'neck'])
