"""Prediction: the results of other programs for the same images, files of results, and one message per mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from tiny_training import tiny_config

import mmplugin
from mmplugin import cli, stack
from mmplugin.data.layouts import yolo
from mmplugin.data.layouts.label_table import read_table
from mmplugin.data.layouts.tree import Tree
from mmplugin.deploy.predictor import mask_writer
from mmplugin.engine import media, predict
from mmplugin.engine.media import Source, Video, find_sources
from mmplugin.engine.prediction import Prediction
from mmplugin.engine.predictor import Predictor, find_in_work_folder
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError

os.environ['OPENCV_FFMPEG_LOGLEVEL'] = '-8'  # as media.py sets it, but before this file writes its first video


def save_model(config: Path, folder: Path, name: str = 'epoch_1.pth', **meta) -> Path:
    """Write a work folder with a model of random weights, as training writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    for name_, module in model.named_modules():
        if name_ in ('roi_head.bbox_head.fc_cls', 'decode_head.conv_seg'):
            torch.nn.init.normal_(module.weight, std=1.0)  # different classes, scores far from each other
    cfg.dump(folder / 'tiny.py')
    meta = dict(
        epoch=1, iter=2, time='20260101_000000', dataset_meta=dict(cfg.train_dataloader.dataset.metainfo), **meta
    )
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / name)
    return folder


@pytest.fixture(scope='module')
def work(tiny_sets, tmp_path_factory) -> Path:
    """Return a folder with the work folders det and seg."""
    root = tmp_path_factory.mktemp('work')
    for kind, name in (('det', 'maskrcnn_evit_m0'), ('seg', 'semfpn_evit_m0')):
        save_model(tiny_config(name, root / kind / 'config'), root / kind / 'work')
    return root


@pytest.fixture(scope='module')
def detector(work) -> Predictor:
    return Predictor(work / 'det/work', score=0.05)


@pytest.fixture(scope='module')
def segmentor(work) -> Predictor:
    return Predictor(work / 'seg/work')


@pytest.fixture
def images(tmp_path) -> Path:
    """Return a folder with images of different sizes."""
    folder = tmp_path / 'images'
    (folder / 'deeper').mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in {'a.png': (70, 90), 'deeper/b.png': (90, 60), 'deeper/c.png': (70, 90)}.items():
        coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(coarse, size[::-1]))
    return folder


@pytest.fixture
def run(monkeypatch, detector, segmentor, work):
    """Run the command with a loaded model, which saves seconds; return its exit code."""

    def run(kind, *arguments) -> int:
        model = detector if kind == 'det' else segmentor
        monkeypatch.setattr(predict, 'Predictor', lambda *args, **options: model)
        return cli.main(['predict', str(work / kind / 'work'), *map(str, arguments)])

    return run


def write_video(path: Path, frames: int = 5, size: tuple[int, int] = (64, 48)) -> Path:
    codec = 'mp4v' if path.suffix == '.mp4' else 'MJPG'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 12.0, size)
    generator = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(generator.integers(0, 256, (size[1], size[0], 3), np.uint8))
    writer.release()
    return path


def frame_count(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count


def same(one: Prediction, other: Prediction) -> bool:
    parts = ('boxes', 'scores', 'labels', 'masks', 'class_map')
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in parts)


# The same results as other programs


def test_objects_equal_those_of_the_inferencer_of_mmdet(work, images, detector):
    stack.import_quietly('mmdet.apis')
    from mmdet.apis import DetInferencer

    folder = work / 'det/work'
    inferencer = DetInferencer(str(folder / 'tiny.py'), str(folder / 'epoch_1.pth'), 'cpu', show_progress=False)
    for path in sorted(images.rglob('*.png')):
        expected = inferencer(str(path), return_datasamples=True, no_save_vis=True)['predictions'][0].pred_instances
        expected = expected[expected.scores >= 0.05]
        found = detector(path)
        assert len(found) == len(expected) > 3
        np.testing.assert_allclose(found.boxes, expected.bboxes, atol=1e-4)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        assert found.labels.tolist() == expected.labels.tolist()
        assert np.array_equal(found.masks, np.asarray(expected.masks, dtype=bool))
        assert found.masks.shape[1:] == found.size == cv2.imread(str(path)).shape[:2]


def test_class_maps_equal_those_of_mmseg(work, images, segmentor):
    stack.import_quietly('mmseg.apis')
    from mmseg.apis import inference_model, init_model

    folder = work / 'seg/work'
    model = init_model(str(folder / 'tiny.py'), str(folder / 'epoch_1.pth'), 'cpu')
    model.cfg.test_pipeline = model.cfg.test_dataloader.dataset.pipeline  # mmseg takes the unused variable
    for path in sorted(images.rglob('*.png')):
        expected = inference_model(model, str(path)).pred_sem_seg.data[0].numpy()
        assert np.array_equal(segmentor(path).class_map, expected)
        assert len(np.unique(expected)) > 1


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_results_do_not_depend_on_the_batch(kind, detector, segmentor, images, monkeypatch):
    model = detector if kind == 'det' else segmentor
    paths = sorted(images.rglob('*.png'))
    alone = [model(path) for path in paths]
    monkeypatch.setattr(model, 'batch', 3)  # two sizes
    for one, other in zip(alone, model(paths), strict=True):
        assert one.path == other.path
        if kind == 'det':
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
            assert one.names == other.names
        else:
            assert (one.class_map == other.class_map).mean() > 0.999


# Images of every kind


def test_files_arrays_and_pil_images_of_the_same_image_are_equal(detector, images):
    path = images / 'a.png'
    results = [detector(path), detector(str(path)), detector(cv2.imread(str(path))), detector(Image.open(path))]
    assert all(same(results[0], other) for other in results[1:])
    assert [result.path for result in results] == [str(path), str(path), None, None]


def test_rotated_gray_transparent_and_deep_images_are_read_as_colors_of_8_bits(detector, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)  # RGB
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(pixels).save(tmp_path / 'turned.png', exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / 'gray.png')
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(tmp_path / 'transparent.png')
    cv2.imwrite(str(tmp_path / 'deep.png'), pixels[..., ::-1].astype(np.uint16) << 8)
    cv2.imwrite(str(tmp_path / 'deep_gray.png'), pixels[..., 0].astype(np.uint16) << 8)
    gray, bgr = np.repeat(pixels[..., :1], 3, axis=2), pixels[..., ::-1]
    expected = {
        'turned': np.rot90(bgr, -1),
        'gray': gray,
        'transparent': bgr,
        'deep': bgr,
        'deep_gray': gray,
    }
    for name, image in expected.items():
        assert np.array_equal(detector.prepare(tmp_path / f'{name}.png').image, image), name
        assert np.array_equal(detector.prepare(Image.open(tmp_path / f'{name}.png')).image, image), name
    arrays = [pixels[..., 0], pixels[..., :1], np.dstack([bgr, gray[..., 0]]), bgr.astype(np.uint16) << 8]
    for array, image in zip(arrays, [gray, gray, bgr, bgr], strict=True):
        assert np.array_equal(detector.prepare(array).image, image)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((4, 4, 3)), 'type float64; expected uint8 or uint16'),
        (np.zeros((4, 4, 2), np.uint8), 'expected height x width x 1, 3 or 4 channels'),
        (np.zeros((0, 4, 3), np.uint8), 'array of 0x4x3'),
        (np.zeros((1, 4000, 3), np.uint8), 'cannot be resized for the model'),
        (7, 'is a int; allowed: a path, a numpy array, a PIL image'),
        ('nowhere.jpg', 'nowhere.jpg does not exist'),
        (Path(__file__).parent, 'is a folder'),
        (__file__, 'is not an image that can be decoded, or damaged'),
    ],
    ids=str,
)
def test_what_is_not_an_image_is_a_user_error(detector, image, message):
    with pytest.raises(UserError, match=message):
        detector(image if not isinstance(image, int) else [image])


# The model


def test_the_package_imports_the_predictor_on_first_use():
    code = "import sys, mmplugin; assert 'mmdet' not in sys.modules and 'mmcv' not in sys.modules; mmplugin.Predictor"
    subprocess.run([sys.executable, '-c', code], check=True)
    assert mmplugin.Predictor is Predictor
    with pytest.raises(AttributeError, match='no attribute'):
        mmplugin.Detector  # noqa: B018


def test_a_work_folder_gives_its_config_and_its_best_or_last_checkpoint(tmp_path):
    def save(name: str, time: str) -> None:
        torch.save(dict(meta=dict(epoch=1, iter=2, time=time), state_dict={}), tmp_path / name)

    with pytest.raises(UserError, match='not a work folder'):
        find_in_work_folder(tmp_path / 'nothing')
    with pytest.raises(UserError, match='has no config'):
        find_in_work_folder(tmp_path)
    (tmp_path / 'a.py').touch()
    with pytest.raises(UserError, match='has no checkpoint'):
        find_in_work_folder(tmp_path)
    save('epoch_1.pth', '2')
    save('epoch_2.pth', '1')  # of an earlier training
    assert find_in_work_folder(tmp_path) == (tmp_path / 'a.py', tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_3.pth').touch()
    with pytest.raises(UserError, match=r'epoch_3.pth is empty.*Name the checkpoint to use$') as error:
        find_in_work_folder(tmp_path)
    assert 'resume' not in str(error.value)
    save('best_coco_bbox_mAP_epoch_1.pth', '1')
    assert find_in_work_folder(tmp_path)[1].name == 'best_coco_bbox_mAP_epoch_1.pth'
    (tmp_path / 'b.py').touch()
    with pytest.raises(UserError, match=r'has 2 configs \(a.py, b.py\)'):
        find_in_work_folder(tmp_path)


def test_the_classes_of_the_checkpoint_count_if_they_are_plain_names(work, tmp_path):
    content = torch.load(work / 'det/work/epoch_1.pth', weights_only=False)
    config = Config.fromfile(work / 'det/work/tiny.py')
    config.model.roi_head.bbox_head.num_classes = config.model.roi_head.mask_head.num_classes = 80
    path = tmp_path / 'own.pth'
    content['meta']['dataset_meta'] = dict(classes=['a', 'b', 'c', 'd', 'e', 'f\x1b[31m'])
    torch.save(content, path)
    assert Predictor(config, path).classes == ('a', 'b', 'c', 'd', 'e', 'f?[31m')
    assert config.model.roi_head.bbox_head.num_classes == 80  # the caller's config stays
    for wrong in (None, 'abcdef', [1, 2], {'classes': 3}):
        content['meta']['dataset_meta'] = dict(classes=wrong)
        torch.save(content, path)
        assert Predictor(work / 'det/work/tiny.py', path).classes == tuple(
            Config.fromfile(work / 'det/work/tiny.py').test_dataloader.dataset.metainfo.classes
        )


def test_weights_that_do_not_fit_are_refused(work):
    with pytest.raises(UserError, match=r'epoch_1.pth does not fit this model.*--allow-partial'):
        Predictor(work / 'seg/work', work / 'det/work/epoch_1.pth')
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used here; allowed: cpu"):
        Predictor(work / 'seg/work', device='cuda:99')


# The result


def test_a_result_selects_names_and_draws(detector, segmentor, images):
    found = detector(images / 'a.png')
    label = found.labels[0]
    chosen = found.select(labels=[label])
    assert set(chosen.names) == {detector.classes[label]}
    assert len(chosen.boxes) == len(chosen.masks) == len(chosen) < len(found)
    assert len(found.select(score=found.scores[1])) == 2
    drawing = found.draw()
    assert drawing.size == (90, 70)
    assert not np.array_equal(np.asarray(drawing), found.image[..., ::-1])
    assert np.array_equal(found.select(score=1.0).draw(), found.image[..., ::-1])
    assert found._repr_png_().startswith(b'\x89PNG')
    regions = segmentor(images / 'a.png')
    label = int(regions.class_map[0, 0])
    assert regions.select(labels=[label]).names == [segmentor.classes[label]]
    assert set(np.unique(regions.select(labels=[label]).class_map)) == {label, 255}
    assert regions.draw().size == (90, 70)


# The command


def test_a_folder_with_unreadable_images_is_predicted(run, detector, images, tmp_path, capsys):
    (images / 'bad.jpg').write_bytes(b'no image')
    (images / 'empty.png').touch()
    os.mkfifo(images / 'pipe.jpg')
    (images / 'large.png').write_bytes(b'P6 50000 50000 255\n')  # the content counts, not the suffix
    assert run('det', images, '--out-dir', tmp_path / 'out') == 0
    said = capsys.readouterr().out
    assert '3 images in' in said
    assert 'Not read: 4' in said
    assert f'{images / "bad.jpg"} is not an image' in said
    assert f'{images / "pipe.jpg"} is a named pipe, not a regular file' in said
    assert f'{images / "large.png"} has 50000x50000 pixels' in said
    names = {path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert names == {'predictions.json', 'a.jpg', 'deeper/b.jpg', 'deeper/c.jpg'}
    coco = COCO(tmp_path / 'out/predictions.json')
    assert [image['file_name'] for image in coco.dataset['images']] == ['a.png', 'deeper/b.png', 'deeper/c.png']
    expected = detector(images / 'deeper/b.png')
    annotations = coco.imgToAnns[2]
    assert [coco.cats[item['category_id']]['name'] for item in annotations] == expected.names
    boxes = np.array([item['bbox'] for item in annotations])
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], expected.boxes[:, 2:], atol=0.02)
    assert np.array_equal(np.array([coco.annToMask(item) for item in annotations]), expected.masks)


def test_nothing_readable_is_one_message(run, tmp_path, capsys):
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    assert run('det', tmp_path / 'bad.jpg', '--out-dir', tmp_path / 'out') == 2
    assert capsys.readouterr().err.endswith('bad.jpg is not an image that can be decoded, or damaged\n')
    assert list((tmp_path / 'out').iterdir()) == []


def test_yolo_labels_are_read_back(run, detector, images, tmp_path):
    assert run('det', images, '--format', 'yolo', '--out-dir', tmp_path, '--no-draw') == 0
    reading = yolo.read(Tree(tmp_path, tmp_path / 'none'))
    assert tuple(reading.classes) == detector.classes
    for record in reading.records:
        found = detector(tmp_path / record.image)
        assert [item.label for item in record.objects] == found.names
        for item, box, mask in zip(record.objects, found.boxes, found.masks, strict=True):
            x, y, width, height = item.box
            if item.segmentation:
                count, _ = cv2.connectedComponents(mask.astype(np.uint8))
                if count == 2:  # one part
                    rows, columns = np.nonzero(mask)
                    extent = (columns.min(), rows.min(), np.ptp(columns), np.ptp(rows))
                    np.testing.assert_allclose((x - 0.5, y - 0.5, width, height), extent, atol=0.01)
            else:
                np.testing.assert_allclose((x, y, x + width, y + height), box, atol=0.01)


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_masks_are_numbered_as_the_table_says(kind, run, detector, segmentor, images, tmp_path):
    out = tmp_path / 'out'
    assert run(kind, images / 'a.png', '--format', 'masks', '--out-dir', out) == 0
    table = read_table(out / 'labels.json').values
    values = cv2.imread(str(out / 'masks/a.png'), cv2.IMREAD_UNCHANGED)
    model = detector if kind == 'det' else segmentor
    found = model(images / 'a.png')
    if kind == 'seg':
        assert table == dict(enumerate(model.classes))
        assert np.array_equal(values, found.class_map)
    else:
        assert table == dict(enumerate(['background', *model.classes]))
        assert np.array_equal(values > 0, found.masks.any(axis=0))
        best = found.masks[0]
        assert {table[value] for value in np.unique(values[best])} == {found.names[0]}


def test_classes_of_the_same_name_stay_apart_in_the_table(tmp_path):
    classes = ('background', 'cat', 'cat', 'cat (2)')
    found = SimpleNamespace(class_map=np.zeros((2, 2), np.uint8))
    with mask_writer(tmp_path, classes) as add:
        add(SimpleNamespace(name='a'), found)
    assert sorted(read_table(tmp_path / 'labels.json').values) == [0, 1, 2, 3]


def test_regions_as_coco_cover_the_image(run, images, tmp_path):
    assert run('seg', images / 'a.png', '--format', 'coco', '--out-dir', tmp_path / 'out') == 0
    coco = COCO(tmp_path / 'out/predictions.json')
    assert np.array_equal(sum(map(coco.annToMask, coco.dataset['annotations'])), np.ones((70, 90)))


@pytest.mark.parametrize('suffix', ['.mp4', '.avi'])
def test_a_video_becomes_a_video_of_the_same_length(suffix, run, tmp_path):
    video = write_video(tmp_path / f'clip{suffix}')
    assert run('det', video, '--out-dir', tmp_path / 'out') == 0
    assert frame_count(tmp_path / 'out/clip.mp4') == 5
    assert cv2.VideoCapture(str(tmp_path / 'out/clip.mp4')).get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [image['frame_id'] for image in content['images']] == list(range(5))
    assert content['videos'] == [{'id': 1, 'name': f'clip{suffix}'}]


class FakeCamera:
    """A camera that gives a few images, and then does what a test wants."""

    def __init__(self, number: int):
        assert number == 0
        self.images = 3

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self):
        self.images -= 1
        if self.images < 0:
            raise KeyboardInterrupt
        return True, np.zeros((48, 64, 3), np.uint8)

    def release(self) -> None:
        pass


def test_ctrl_c_ends_a_camera_with_complete_files(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(media.cv2, 'VideoCapture', FakeCamera)
    assert run('seg', '0', '--format', 'coco', '--out-dir', tmp_path / 'out') == 130
    assert '3 images in' in capsys.readouterr().out
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())['images']) == 3
    monkeypatch.undo()
    assert frame_count(tmp_path / 'out/camera_0.mp4') >= 1


def test_a_camera_that_is_not_there_is_one_message(run, tmp_path, capsys):
    assert run('det', 'camera:97', '--out-dir', tmp_path / 'out') == 2
    assert capsys.readouterr().err.startswith('mmplugin predict: camera:97 cannot be opened or gives no image (')


def test_videos_that_cannot_be_decoded_are_one_message(run, tmp_path, capfd):
    intact = write_video(tmp_path / 'intact.mp4').read_bytes()
    for name, content in {'cut': intact[: len(intact) // 2], 'text': b'no video', 'empty': b''}.items():
        video = tmp_path / f'{name}.mp4'
        video.write_bytes(content)
        assert run('det', video, '--out-dir', tmp_path / 'out') == 2
        message = capfd.readouterr().err
        assert message.startswith(f'mmplugin predict: {video} {"is empty" if name == "empty" else "cannot be decoded"}')
        assert message.count('\n') == 1


def test_a_video_that_ends_early_is_listed(tmp_path):
    video = write_video(tmp_path / 'long.avi', frames=20)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(UserError, match=r'only \d+ of about 20 frames could be decoded'):
        list(Video(Source('video', str(video), 'long.avi', 'long')))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing.jpg'], 'missing.jpg does not exist'),
        (['nothing'], 'nothing has no images or videos'),
        (['*.bmp'], '*.bmp matches no file'),
        (['camera:x'], 'camera:x is not a camera'),
        (['camera:0', 'a.png'], 'camera:0 has no end'),
        ([], 'no PATH: name images'),
        (['a.png', '--out-dir', 'a.png'], '--out-dir a.png cannot be written to'),
        (['a.jpg', '--out-dir', '.'], 'the drawing would overwrite a.jpg'),
        (['a.png', '--show'], '--show requires a display'),
        (['a.png', '--classes', 'car,hause'], "the model has no class 'hause'; did you mean house?"),
        (['a.png', '--format', 'yolo'], '--format yolo has no class maps'),
    ],
)
def test_each_mistake_is_one_message(arguments, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    (tmp_path / 'nothing').mkdir()
    for name in ('a.png', 'a.jpg'):
        Image.new('RGB', (40, 40)).save(tmp_path / name)
    before = (tmp_path / 'a.jpg').read_bytes()
    assert run('seg', *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith('mmplugin predict: ')
    assert message in said
    assert said.count('\n') == 1
    assert (tmp_path / 'a.jpg').read_bytes() == before


def test_q_in_the_window_ends_the_command(run, images, tmp_path, monkeypatch):
    shown = []
    fakes = {
        'namedWindow': lambda *_: None,
        'imshow': lambda _, drawing: shown.append(drawing.shape),
        'waitKey': lambda _: ord('q') if len(shown) == 2 else ord(' '),
        'getWindowProperty': lambda *_: 1.0,
        'destroyAllWindows': lambda: shown.append('closed'),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(cv2, name, fake)
    monkeypatch.setenv('DISPLAY', ':0')
    assert run('seg', images, '--show', '--out-dir', tmp_path / 'out') == 0
    assert shown == [(70, 90, 3), (90, 60, 3), 'closed']
    assert len(list((tmp_path / 'out/masks').rglob('*.png'))) == 2


def test_an_opencv_without_windows_is_one_message(run, images, monkeypatch, capsys):
    def missing(*_):
        raise cv2.error('The function is not implemented')

    monkeypatch.setattr(cv2, 'namedWindow', missing)
    monkeypatch.setenv('DISPLAY', ':0')
    assert run('seg', images, '--show') == 2
    assert '--show requires an OpenCV with windows: install opencv-python' in capsys.readouterr().err


def test_a_config_needs_a_checkpoint(tmp_path, capsys):
    assert cli.main(['predict', 'retinanet_v2_s0', str(tmp_path)]) == 2
    assert 'it must be a config that a checkpoint follows (NAME.pth)' in capsys.readouterr().err


def test_results_of_images_with_the_same_name_have_names_of_their_own(tmp_path):
    for name in ('x/a.jpg', 'y/a.jpg', 'y/a.png', 'y/.hidden/b.jpg', 'y/out/a.jpg', 'y/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_sources([str(tmp_path / 'x/a.jpg'), str(tmp_path / 'y')], tmp_path / 'y/out')
    assert [source.name for source in found] == ['a', 'a_jpg', 'a_png']
    assert len({source.file_name for source in found}) == 3
    assert [source.name for source in find_sources([str(tmp_path / '*/a.jpg')], tmp_path / 'out')] == ['a', 'a_jpg']
