"""Images with too many pixels are refused by their header, and pipes, devices and sockets before they are opened."""

import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from faults.test_odd_images import Training
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from PIL import Image
from rich.console import Console

from mmplugin.convert.arch_file import read_arch
from mmplugin.convert.verify import verify
from mmplugin.data.layouts.coco import find
from mmplugin.data.layouts.masks import read_mask
from mmplugin.data.layouts.records import image_size
from mmplugin.data.layouts.tree import Tree, read_text
from mmplugin.data.load_errors import name_files_in_errors_, require_annotation_files
from mmplugin.engine.check_data import check_config
from mmplugin.engine.media import VIDEO, Source, Video
from mmplugin.errors import UserError
from mmplugin.image_files import FORMATS, MOST_PIXELS, check_image
from mmplugin.search.latency import LatencyTable
from mmplugin.search.result import read_trace

SIDE = 32000  # OpenCV decodes such an image, in 3 GB
TOO_LARGE = r'a\.png has 32000x32000 pixels, but the limit is'
PIPE = r'is a named pipe, not a regular file'


def write_large_image(path: Path) -> None:
    """Write a PNG that states ``SIDE`` times ``SIDE`` gray pixels."""
    content = b'\x89PNG\r\n\x1a\n'
    pixels = zlib.compress(bytes(SIDE + 1))
    for kind, data in ((b'IHDR', struct.pack('>2I5B', SIDE, SIDE, 8, 0, 0, 0, 0)), (b'IDAT', pixels), (b'IEND', b'')):
        content += struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    path.write_bytes(content)


DAMAGES = [(write_large_image, TOO_LARGE), (os.mkfifo, PIPE)]


def run_pipeline(path: Path) -> None:
    """Load an image as training does."""
    dataset = BaseDataset(pipeline=[LoadImageFromFile()], lazy_init=True)
    name_files_in_errors_(dataset)
    dataset.pipeline(dict(img_path=str(path)))


READERS: dict[str, Callable[[Path], Any]] = {
    'training': run_pipeline,
    'convert --verify': lambda path: verify(None, None, path.parent, None, Console()),  # type: ignore[arg-type]
    'a layout': image_size,
    'a mask of a layout': read_mask,
}


@pytest.mark.parametrize(('damage', 'message'), DAMAGES)
@pytest.mark.parametrize('reader', READERS)
def test_every_reader_refuses_it_without_decoding(reader: str, damage, message: str, tmp_path: Path):
    path = tmp_path / 'a.png'
    damage(path)
    with pytest.raises(UserError, match=message):
        READERS[reader](path)


@pytest.mark.parametrize('name', ['images/a.png', 'masks/a.png'])
@pytest.mark.parametrize(('damage', 'message'), DAMAGES)
def test_the_check_of_a_segmentation_set_names_it(damage, message: str, name: str, tmp_path: Path):
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
        Image.new('L', (8, 8)).save(tmp_path / folder / 'a.png')
    (tmp_path / name).unlink()
    damage(tmp_path / name)
    prefix = dict(img_path='images', seg_map_path='masks')
    dataset = dict(type='BaseSegDataset', data_root=str(tmp_path), img_suffix='.png', data_prefix=prefix)
    dataset['metainfo'] = dict(classes=('a', 'b'))
    cfg = Config(dict(default_scope='mmseg', model=dict(type='EncoderDecoder'), train_dataloader=dict(dataset=dataset)))
    (problem,) = [found.problem for found in check_config(cfg) if 'unreadable masks or images' in found.problem]
    assert problem.count('a.png') >= 1
    assert PIPE in problem if damage is os.mkfifo else '32000x32000 pixels' in problem


@pytest.mark.parametrize('kind', FORMATS)
def test_the_header_tells_the_size_of_every_format(kind: str, tmp_path: Path):
    path = tmp_path / 'image'
    Image.new('RGB', (40, 30)).save(path, kind)
    check_image(path, 40 * 30)
    with pytest.raises(UserError, match='40x30'):
        check_image(path, 40 * 30 - 1)


def test_images_of_cameras_are_below_the_limit():
    assert MOST_PIXELS > 16320 * 12240  # a telephone
    assert MOST_PIXELS > 19008 * 12672  # four shots with a shifted sensor


def test_what_the_header_does_not_tell_is_left_to_the_decoder(tmp_path: Path):
    (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    (tmp_path / 'b.hdr').write_bytes(b'#?RADIANCE')
    for name in ('a.png', 'b.hdr', 'missing.png'):
        check_image(tmp_path / name)


def test_devices_sockets_and_folders_are_named(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'socket'))
    for path, kind in (('/dev/zero', 'device'), (tmp_path / 'socket', 'socket'), (tmp_path, 'folder')):
        with pytest.raises(UserError, match=f'{path} is a {kind}, not a regular file'):
            check_image(path)


def test_annotations_in_a_pipe_are_refused(tmp_path: Path):
    pipe = tmp_path / 'a.json'
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=PIPE):
        read_text(pipe)
    assert find(Tree(tmp_path)) == []
    with pytest.raises(UserError, match=PIPE):
        require_annotation_files([dict(dataset=dict(data_root=str(tmp_path), ann_file='a.json'))])
    require_annotation_files(dict(data_root=str(tmp_path.parent), ann_file=tmp_path.name))  # folders of DOTA
    with pytest.raises(UserError, match=PIPE):
        Video(Source(VIDEO, str(pipe), 'a.mp4', 'a'))


# Files of searches, which people pass on like weights.
SEARCH_FILES: dict[str, Callable[[Path], Any]] = {
    'arch.json': read_arch,
    'latency.json': LatencyTable.load,
    'latency.csv': LatencyTable.load,
    'trace.jsonl': read_trace,
}


@pytest.mark.parametrize('name', SEARCH_FILES)
def test_a_file_of_a_search_in_a_pipe_is_refused(name: str, tmp_path: Path):
    os.mkfifo(tmp_path / name)
    (tmp_path / 'probes.json').symlink_to(tmp_path / name)  # which is read together with the times
    with pytest.raises(UserError, match=PIPE):
        SEARCH_FILES[name](tmp_path / name)


@pytest.mark.parametrize('content', [b'[' * 200_000, b'\xff\xfe\x00'])
@pytest.mark.parametrize('name', SEARCH_FILES)
def test_a_damaged_file_of_a_search_is_one_message_with_its_path(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        SEARCH_FILES[name](tmp_path / name)


@pytest.fixture(scope='module')
def table() -> dict[str, Any]:
    """Return a latency table of which nothing was timed."""
    with TemporaryDirectory() as folder:
        path = Path(folder, 'latency.json')
        LatencyTable.measure('v2', (64, 64), around='s0', clock=lambda part: sum(part.sizes) / 1e3).save(path)
        return json.loads(path.read_text())


NETWORK = dict(
    widths=[32, 48, 96, 176], depths=[2, 2, 6, 4], attention_blocks=[2, 2], ratios=[[4] * n for n in (2, 2, 6, 4)]
)
WRONG_NETWORKS: list[Any] = [
    5, [], {}, dict(NETWORK, depths=[10**9] * 4), dict(NETWORK, depths=[2] * 4, hidden=[[1] * 10**5] * 4),
    dict(NETWORK, ratios=[[10**400] * n for n in (2, 2, 6, 4)]),
    *(dict(NETWORK, widths=[width] * 4) for width in (10**400, 1e9, 60000, -1, float('nan'), 'a')),
]  # fmt: skip
WRONG_PARTS: list[Any] = [
    ['evil', 0, [1], 1], ['stem', 99, [1], 1], ['stem', -1, [1], 1], ['stem', float('inf'), [1], 1], [{}, 0, [1], 1],
    *(['ffn', 0, sizes, 1] for sizes in ([], ['a'], [0], [-1], [10**400], [1] * 10**6)),
    *(['ffn', 0, [1, 1], ms] for ms in (10**400, float('nan'), 0, True, 'a')), ['ffn', 0, [1, 1]], 'abcd', 5,
]  # fmt: skip


@pytest.mark.parametrize('arch', WRONG_NETWORKS, ids=range(len(WRONG_NETWORKS)))
def test_a_network_of_absurd_size_is_refused_wherever_it_is_read(arch: Any, table: dict[str, Any], tmp_path: Path):
    (tmp_path / 'arch.json').write_text(json.dumps(dict(type='EfficientFormerV2', arch=arch)))
    with pytest.raises(UserError, match=r'arch\.json'):
        read_arch(tmp_path / 'arch.json')
    checks = [dict(table['checks'][0], arch=arch), *table['checks'][1:]]
    (tmp_path / 'latency.json').write_text(json.dumps(dict(table, checks=checks)))
    with pytest.raises(UserError, match=r'latency\.json'):
        LatencyTable.load(tmp_path / 'latency.json')


def test_parts_of_absurd_size_are_refused(table: dict[str, Any], tmp_path: Path):
    for part in WRONG_PARTS:
        (tmp_path / 'latency.json').write_text(json.dumps(dict(table, entries=[*table['entries'], part])))
        with pytest.raises(UserError, match=r'latency\.json'):
            LatencyTable.load(tmp_path / 'latency.json')


@pytest.mark.parametrize('line', ['', '5', '[]', '{}', '"a"', '{"number": 0, "arch": {}, "loss": NaN, "measured": 1}',
                                  '{"number": 0, "arch": {}, "loss": 1, "measured": []}'])  # fmt: skip
def test_a_trace_without_its_numbers_is_refused(line: str, tmp_path: Path):
    (tmp_path / 'trace.jsonl').write_text(line)
    with pytest.raises(UserError, match=r'--resume: .*trace\.jsonl cannot be read'):
        read_trace(tmp_path / 'trace.jsonl')


def test_training_without_its_check_does_not_wait_for_a_pipe(tiny_sets: None, tmp_path: Path, capsys):
    training = Training('detection', tmp_path, batch_size=4)
    for path in training.images[::2]:
        path.unlink()
        os.mkfifo(path)
    assert training.run() == 2
    said = capsys.readouterr().err
    assert any(f'{path} is a named pipe' in said for path in training.images)
    annotations = training.root / 'annotations/train.json'
    annotations.unlink()
    os.mkfifo(annotations)
    assert training.run() == 2
    assert f'{annotations} is a named pipe' in capsys.readouterr().err
