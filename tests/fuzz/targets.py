"""What is fuzzed: the kinds of files, a valid file of each kind, and how it is read."""

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from PIL import Image
from rich.console import Console

from mmplugin.backbones import FAMILIES
from mmplugin.cli import main
from mmplugin.convert import checkpoint_io, convert
from mmplugin.convert.formats import TIMM, get, skeleton
from mmplugin.engine.check_data import check_config, show
from mmplugin.errors import UserError

CANARY = 'canary'  # hostile files create this folder when they are executed
CLASSES = ('box', 'disk')
SIZE = 40  # side of the images
TINY = {
    'v1': dict(widths=(8, 8, 8, 8), depths=(1, 1, 1, 2), attention_blocks=1),
    'v2': dict(widths=(8,) * 4, depths=(1,) * 4, attention_blocks=1, ratios=((1,),) * 4),
    'evit': dict(widths=(16, 16, 16), depths=(1, 1, 1), heads=(1, 1, 1), kernels=(3,)),
}


class Failure(AssertionError):
    """A file was read in a way that no file may be read."""


class Executes:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable, *arguments: str):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Args:
        valid: Returns the content of a valid file.
        read: Reads the file ``content`` in the current folder, which is empty; returns what happened in a few words.
    """

    valid: Callable[[], bytes]
    read: Callable[[bytes], str]


def shared_storage(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace the values by views of a single number, so that the file is small."""
    return {key: torch.full((), 0.5).expand(value.shape) for key, value in weights.items()}


@cache
def checkpoint(family: str) -> dict:
    """Return a file of ``mmplugin convert`` for a tiny variant."""
    arch = TINY[family]
    weights = shared_storage(skeleton(family, arch))
    config = dict(type=FAMILIES[family].__name__, arch=arch)
    return {'state_dict': weights, 'head': {}, 'meta': {'backbone': config, 'report': {'source': 'x.pth'}}}


@cache
def published() -> dict:
    """Return weights as timm publishes them; they are recognized by names and shapes alone."""
    rename = get(TIMM, 'evit').rename(FAMILIES['evit'].ARCHS['m0'])
    return shared_storage({rename(key): value for key, value in skeleton('evit', 'm0').items()})


def saved(content: object, zipped: bool = True) -> bytes:
    """Return the bytes that ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def hostile(zipped: bool) -> dict:
    """Return a checkpoint that creates the canary in four ways if its pickle is executed."""
    import builtins
    import os

    code = f"__import__('os').makedirs({CANARY!r}, exist_ok=True)"
    calls = (os.mkdir, CANARY), (os.system, f'mkdir -p {CANARY}'), (builtins.eval, code), (builtins.exec, code)
    hooks = {f'hook{number}': Executes(*call) for number, call in enumerate(calls)}
    return {**checkpoint('evit'), **hooks}


def safetensors_file() -> bytes:
    """Return the weights of the tiny EfficientViT as safetensors."""
    from safetensors.torch import save

    return save({key: value.half().contiguous() for key, value in checkpoint('evit')['state_dict'].items()})


def coco_file() -> bytes:
    """Return annotations with boxes, polygons and both kinds of RLE."""
    area = 10 * 12
    masks = [
        [[5, 5, 15, 5, 15, 17, 5, 17]],
        {'size': [SIZE, SIZE], 'counts': [205, 12, SIZE * SIZE - 217]},
        {'size': [SIZE, SIZE], 'counts': ']6<l000000000000000000So0'},
    ]
    images = [dict(id=i, file_name=f'{i}.png', width=SIZE, height=SIZE) for i in (1, 2)]
    annotations = [
        dict(id=i, image_id=1 + i % 2, category_id=1 + i % 2, bbox=[5, 5, 10, 12], area=area, iscrowd=int(i > 4),
             segmentation=masks[i % 3])
        for i in range(1, 7)
    ]  # fmt: skip
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    return json.dumps(dict(images=images, annotations=annotations, categories=categories)).encode()


def mask_file() -> bytes:
    """Return an 8-bit mask with both classes."""
    image = Image.new('L', (SIZE, SIZE))
    image.paste(1, (5, 5, 15, 17))
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def check_text(text: str) -> None:
    """Fail if a terminal would obey characters of the text."""
    controls = {character for character in text if not character.isprintable()} - {'\n'}
    if controls:
        raise Failure(f'control characters in the output: {sorted(controls)!r}')


@contextlib.contextmanager
def captured() -> Callable[[], str]:
    """Capture what is printed, encoded as on a terminal; yield a function that returns it."""
    file = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', write_through=True)
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield lambda: file.buffer.getvalue().decode()


def read_checkpoint(content: bytes, name: str = 'source.pth') -> str:
    """Convert a file."""
    Path(name).write_bytes(content)
    with captured() as text:
        code = main(['convert', name, 'target.pth'])
    check_text(text())
    if code == 2:
        return text()
    if code or not Path('target.pth').is_file():
        raise Failure(f'exit code {code}, {text()}')
    for key, value in checkpoint_io.read('target.pth')['state_dict'].items():
        if not torch.isfinite(value).all():
            raise Failure(f'{key} is not finite in the converted file')
    return 'converted'


def read_safetensors(content: bytes) -> str:
    """Read a file, and convert it as the tiny EfficientViT, whose shapes no file can tell."""
    Path('source.safetensors').write_bytes(content)
    try:
        convert(checkpoint_io.read('source.safetensors'), TINY['evit'])
    except UserError as error:
        return str(error)
    return 'converted'


def loader(kind: str, folder: str, **options) -> dict:
    """Return the setting of a dataloader without a pipeline."""
    return dict(dataset=dict(type=kind, data_root=folder, metainfo=dict(classes=CLASSES), **options))


def run_checks(cfg: Config) -> str:
    """Run the thorough and the fast check, and print what they find."""
    problems = []
    for fast in (False, True):
        findings = check_config(cfg, fast)
        file = io.TextIOWrapper(io.BytesIO(), encoding='utf-8', write_through=True)
        show(findings, Console(file=file, width=100))
        check_text(file.buffer.getvalue().decode())
        problems += [finding.problem for finding in findings]
    return ' | '.join(dict.fromkeys(problems)) or 'no findings'


def write_images(folder: str, first: bytes | None = None) -> None:
    """Write two images, the first of them with this content."""
    Path(folder).mkdir(parents=True)
    for number, content in ((1, first), (2, None)):
        Path(folder, f'{number}.png').write_bytes(mask_file() if content is None else content)


def read_coco(content: bytes) -> str:
    """Check a detection set."""
    write_images('images')
    Path('train.json').write_bytes(content)
    head = dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2))
    dataset = loader('CocoDataset', '.', ann_file='train.json', data_prefix=dict(img='images/'))
    return run_checks(
        Config(dict(default_scope='mmdet', model=dict(type='MaskRCNN', roi_head=head), train_dataloader=dataset))
    )


def read_mask(content: bytes) -> str:
    """Check a segmentation set in which the file is an image and a mask."""
    write_images('images', content)
    write_images('masks', content)
    dataset = loader(
        'BaseSegDataset', '.', img_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='masks')
    )
    model = dict(type='EncoderDecoder', decode_head=dict(num_classes=2))
    return run_checks(Config(dict(default_scope='mmseg', model=model, train_dataloader=dataset)))


FILE_TARGETS = {
    **{f'zip-{family}': Target(lambda family=family: saved(checkpoint(family)), read_checkpoint) for family in TINY},
    'zip-timm': Target(lambda: saved(published()), read_checkpoint),
    'zip-hostile': Target(lambda: saved(hostile(True)), read_checkpoint),
    'legacy-evit': Target(lambda: saved(checkpoint('evit'), False), read_checkpoint),
    'legacy-hostile': Target(lambda: saved(hostile(False), False), read_checkpoint),
    'pickle-hostile': Target(lambda: pickle.dumps({'x': hostile(False)['hook0']}), read_checkpoint),
    'safetensors': Target(safetensors_file, read_safetensors),
    'coco': Target(coco_file, read_coco),
    'mask': Target(mask_file, read_mask),
}
