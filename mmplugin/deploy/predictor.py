"""Predictor of the files that ``mmplugin export`` writes. It needs numpy, Pillow, and onnxruntime or OpenVINO.

This module imports nothing else of mmplugin, so that it works as a lone file, which is why it is a long one. It is also
the distribution mmplugin-runtime::

    python predict.py model.onnx photos/

    from predict import Predictor  # from mmplugin_runtime import Predictor

    found = Predictor('model.onnx')('photo.jpg')
    found.boxes, found.scores, found.names, found.masks  # of a segmentor: found.class_map
    found.draw().save('drawing.png')

OpenCV is used if it is installed: it resizes faster, and videos need it. Without it, a few values in a thousand of a
resized image differ by one gray level.
"""

import argparse
import colorsys
import ctypes
import functools
import hashlib
import importlib.util
import io
import json
import mmap
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

__version__ = '1.0.0.dev0'  # of mmplugin
FORMAT = 1  # of the metadata
REQUIRED = 'classes', 'size', 'dynamic', 'min_size', 'resize', 'logits'  # in the metadata of a file that takes images
KINDS = ('boxes', 'masks', 'classes')  # of files that take images
# A file may come from a stranger, so these limits stand between what it says and what is done.
MOST_TEXT, MOST_CLASSES, LONGEST_NAME = 1 << 23, 100_000, 1000  # characters of the metadata and of a class name
LARGEST, FARTHEST = 8192, 1e6  # side of what a file takes, coordinate of a box
LARGEST_MULTIPLE = 1024  # that sides are resized to
MOST_OBJECTS, LARGEST_GRID, MOST_MASK_BYTES = 10_000, 512, 1 << 32  # of one image; side of a mask before pasting
# What precedes `location` in a tensor that lies in another file: the first field of a message, of eight bytes.
IN_ANOTHER_FILE = re.compile(rb'(\x0a|\x8a\x80*\x00)(\x08|\x88\x80*\x00)\Z')
# By the suffix of a file, the entry of its checksum, which stands in front of 64 digits.
CHECKSUMS = {'.onnx': 'mmplugin_checksum', '.xml': 'mmplugin_ir_checksum'}
NO_CHECKSUM = '0' * 64  # counts in place of the checksum itself
SCORE = 0.3
STOPPED = 130  # exit code of Ctrl-C
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'PPM', 'GIF', 'JPEG2000')
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.3gp', '.ogv', '.flv')
MOST_PIXELS = 1 << 28  # cameras have up to 200 million
CHECKPOINTS = ('.pth', '.pt', '.safetensors')
QUEUE = 2  # images that wait between two steps
LINE_EVERY = 20.0  # seconds between two lines of progress
MASK_SHARE = 0.45  # of the color of a mask over the image
SMALLEST_NAMED = 0.004  # share of the image that a region needs to be named
NAMING_SIDE = 128  # longest side of the image on which the place of a name is chosen
IGNORED = 255  # in class maps: pixels of classes that were filtered out
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
COCO_FILE, MASKS, LABEL_TABLE, BACKGROUND = 'predictions.json', 'masks', 'labels.json', 'background'

ImageLike = str | Path | np.ndarray | Image.Image
OptionalArray = Any  # an array or None, depending on the model


class PredictorError(ValueError):
    """An error that the user can fix; the message says how."""


def _printable(text: str, keep: str = '') -> str:
    """Replace control characters, which a terminal would obey, by question marks."""
    return ''.join(character if character.isprintable() or character in keep else '?' for character in text)


# Images


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as (height, width, 3) of 8 bits, blue, green, red, turned as its EXIF data says."""
    file = Path(path).expanduser()
    _require_file(file)
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise PredictorError(
                    f'{path} has {image.width}x{image.height} pixels, but the limit is {MOST_PIXELS:,}; cut it into '
                    'tiles, or remove it'
                )
            return as_bgr(image)
    except PredictorError:
        raise
    except Image.DecompressionBombError as error:
        raise PredictorError(f'{path} has more than {MOST_PIXELS:,} pixels; cut it into tiles, or remove it') from error
    except PermissionError as error:
        raise PredictorError(f'{path} cannot be read: {error.strerror}') from error
    except Exception as error:  # decoders raise anything
        raise PredictorError(f'{path} is not an image that can be decoded, or damaged') from error


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise PredictorError(f'{path} is a folder, not a file')
    if not path.exists():
        raise PredictorError(f'{path} does not exist')
    if not path.is_file():  # a pipe lets a reader wait for ever
        raise PredictorError(f'{path} is not a regular file')
    if path.stat().st_size == 0:
        raise PredictorError(f'{path} is empty')


def as_bgr(image: Any) -> np.ndarray:
    """Return an array or a PIL image as (height, width, 3) of 8 bits, blue, green, red.

    Args:
        image: An array of 8 or 16 bits with channels in the order blue, green, red, or gray, or with alpha; or a PIL
            image.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I;16'):
            return as_bgr(np.asarray(image).astype(np.uint16))
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])
    if not isinstance(image, np.ndarray):
        raise PredictorError(f'an image is a {type(image).__name__}; allowed: a path, a numpy array, a PIL image')
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    shape = 'x'.join(map(str, image.shape))
    if image.dtype != np.uint8 or image.size == 0 or image.ndim not in (2, 3):
        raise PredictorError(
            f'an image is an array of {shape} and type {image.dtype}; expected uint8 or uint16 and height x width, '
            'with or without channels'
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    elif channels not in (3, 4):
        raise PredictorError(f'an image is an array of {shape}; expected height x width x 1, 3 or 4 channels')
    return np.ascontiguousarray(image[..., :3])


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image by bilinear interpolation, with OpenCV if it is installed."""
    if image.shape[:2] == (height, width):
        return image
    try:
        import cv2
    except ImportError:
        return resize_in_numpy(image, height, width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_in_numpy(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image as ``cv2.resize`` does: two taps, in integers; a few values in a thousand differ by 1."""
    above, below, upper, lower = _taps(image.shape[0], height)
    left, right, near, far = _taps(image.shape[1], width)
    used, positions = np.unique(np.concatenate([above, below]), return_inverse=True)
    rows = image[used]
    wide = rows[:, left] * near[:, None] + rows[:, right] * far[:, None] >> 4
    result = (wide[positions[:height]] * upper[:, None, None] >> 16) + (
        wide[positions[height:]] * lower[:, None, None] >> 16
    )
    return (result + 2 >> 2).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two pixels that each new one is computed from, and their weights in 1/2048."""
    positions = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32).clip(0, old - 1)
    first = np.floor(positions).astype(int)
    share = positions - first.astype(np.float32)
    weights = [np.rint(weight * np.float32(2048)).astype(np.int32) for weight in (np.float32(1) - share, share)]
    return first, np.minimum(first + 1, old - 1), weights[0], weights[1]


# Masks


def paste_masks(grids: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float) -> np.ndarray:
    """Return masks (n, height, width), bool, as mmdet's ``FCNMaskHead`` pastes them.

    Args:
        grids: Probabilities (n, side, side) over each box.
        boxes: x1, y1, x2, y2 in pixels of the image, (n, 4).
        height: Height of the image.
        width: Width of the image.
        threshold: Probability from which a pixel belongs to an object.
    """
    masks = np.zeros((len(grids), height, width), bool)
    corners: Any = boxes.astype(np.float32)
    for mask, grid, (x1, y1, x2, y2) in zip(masks, grids, corners, strict=True):
        # As far as one pixel outside of the box, where interpolation with the zeros around the grid ends.
        rows, columns = _span(y1, y2, height), _span(x1, x2, width)
        if rows.size and columns.size:
            inside = _sample(grid, _positions(rows, y1, y2, len(grid)), _positions(columns, x1, x2, len(grid)))
            mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = inside >= threshold
    return masks


def _span(near: Any, far: Any, size: int) -> np.ndarray:
    return np.arange(max(0, int(np.floor(near)) - 1), min(size, int(np.ceil(far)) + 1))


def _positions(pixels: np.ndarray, near: Any, far: Any, side: int) -> np.ndarray:
    """Return where the centers of pixels are in a grid of ``side`` cells, in cells."""
    half, one = np.float32(0.5), np.float32(1)
    with np.errstate(divide='ignore', invalid='ignore'):
        relative = (pixels.astype(np.float32) + half - near) / (far - near) * np.float32(2) - one
    relative = np.where(np.isinf(relative), np.float32(0), relative)  # a box without extent
    relative = np.where(np.isnan(relative), np.float32(-2), relative)  # on the center of a pixel: outside of the grid
    return ((relative + one) * np.float32(side) - one) / np.float32(2)


def _sample(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate a grid with zeros around it at rows ``y`` and columns ``x``."""
    padded = np.pad(grid, 1)
    top, left = np.floor(y), np.floor(x)
    below, right = (y - top)[:, None], (x - left)[None]
    above, before = (top + 1 - y)[:, None], (left + 1 - x)[None]
    rows = [np.clip(top + step, 0, len(grid) + 1).astype(int)[:, None] for step in (1, 2)]
    columns = [np.clip(left + step, 0, len(grid) + 1).astype(int)[None] for step in (1, 2)]
    result = padded[rows[0], columns[0]] * (above * before)
    result += padded[rows[0], columns[1]] * (above * right)
    result += padded[rows[1], columns[0]] * (below * before)
    result += padded[rows[1], columns[1]] * (below * right)
    return result


# Results


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The objects or the class map that a model found in one image.

    Args:
        image: The image, with channels in the order blue, green, red, as OpenCV and mmcv read it.
        classes: Names of all classes of the model.
        path: File of the image, if it came from a file.
        boxes: ``(n, 4)``, ``x1 y1 x2 y2`` in pixels of the image, highest score first; None for segmentation.
        scores: ``(n,)``, from 0 to 1.
        labels: ``(n,)``, indices into ``classes``.
        masks: ``(n, height, width)`` of bool, if the model predicts masks.
        class_map: ``(height, width)``, an index into ``classes`` for each pixel; None for detection.
    """

    image: np.ndarray
    classes: tuple[str, ...]
    path: str | None = None
    boxes: OptionalArray = None
    scores: OptionalArray = None
    labels: OptionalArray = None
    masks: OptionalArray = None
    class_map: OptionalArray = None

    @property
    def names(self) -> list[str]:
        """Class name of each object; for segmentation, of each class in the map."""
        found = np.unique(self.class_map) if self.labels is None else self.labels
        return [self.classes[label] for label in found.tolist() if label < len(self.classes)]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        found = ', '.join(f'{count} {name}' for name, count in Counter(self.names).items())
        if self.class_map is not None:
            found = ', '.join(self.names)
        height, width = self.size
        return f'<Prediction {self.path or "array"} {width}x{height}: {found or "nothing"}>'

    def select(self, score: float = 0.0, labels: Collection[int] | None = None) -> 'Prediction':
        """Return the objects with at least a score and one of some labels; other pixels of a class map become 255."""
        if self.class_map is not None:
            if labels is None:
                return self
            ignored = np.array(IGNORED if len(self.classes) <= IGNORED else np.iinfo(np.uint16).max)
            return replace(self, class_map=np.where(np.isin(self.class_map, list(labels)), self.class_map, ignored))
        chosen = self.scores >= score
        if labels is not None:
            chosen &= np.isin(self.labels, list(labels))
        parts = ('boxes', 'scores', 'labels', 'masks')
        return replace(self, **{name: part[chosen] for name in parts if (part := getattr(self, name)) is not None})

    def draw(self) -> Image.Image:
        """Return the image with boxes, masks and class names, or with the class map."""
        pixels = np.ascontiguousarray(self.image[..., ::-1]).astype(np.uint8)
        colors = palette(len(self.classes))
        font = ImageFont.load_default(min(40, max(10, min(self.size) // 28)))
        if self.class_map is not None:
            return _draw_class_map(pixels, self, colors, font)
        return _draw_objects(pixels, self, colors, font)

    def _repr_png_(self) -> bytes:
        """Return the drawing as notebooks show it."""
        file = io.BytesIO()
        self.draw().save(file, 'PNG')
        return file.getvalue()


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return distinct RGB colors, one per class: those of mmplugin's training reports."""
    hues = (colorsys.hsv_to_rgb(i * 0.618 % 1, 0.55 + 0.4 * (i % 2), 0.95) for i in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in hues]


def _draw_objects(
    pixels: np.ndarray, prediction: Prediction, colors: list[tuple[int, int, int]], font: Any
) -> Image.Image:
    line = max(1, round(min(prediction.size) / 240))
    order = np.argsort(prediction.scores, kind='stable').tolist()  # the best ones are drawn last
    for i in order:
        if prediction.masks is not None and prediction.masks[i].any():
            rows, columns = _extent(prediction.masks[i])
            mask, part = prediction.masks[i][rows, columns], pixels[rows, columns]
            color = colors[prediction.labels[i]]
            _blend_(part, mask, color)
            part[mask & ~_shrink(mask, line)] = color
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for i in order:
        x1, y1, x2, y2 = np.rint(prediction.boxes[i]).astype(int).tolist()
        label = prediction.labels[i]
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colors[label], width=line)
        text = f'{prediction.classes[label]} {prediction.scores[i]:.2f}'
        above = y1 - font.size * 1.4
        _write(draw, (x1 + 3, above if above >= 0 else y1 + line + 1), text, colors[label], font)
    return image


def _draw_class_map(
    pixels: np.ndarray, prediction: Prediction, colors: list[tuple[int, int, int]], font: Any
) -> Image.Image:
    places = []
    for label in np.unique(prediction.class_map).tolist():
        if label < len(colors):
            inside = prediction.class_map == label
            _blend_(pixels, inside, colors[label])
            if inside.mean() >= SMALLEST_NAMED:
                places.append((label, _deepest(inside)))
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for label, (y, x) in places:
        name = prediction.classes[label]
        place = x - draw.textlength(name, font) / 2, y - font.size / 2
        _write(draw, place, name, colors[label], font)
    return image


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of a mask that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _shrink(mask: np.ndarray, steps: int = 1) -> np.ndarray:
    """Return the pixels of a mask that are more than ``steps`` rows and columns away from other pixels."""
    for _ in range(steps):
        around = np.pad(mask, 1)
        mask = mask & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask


def _deepest(mask: np.ndarray) -> tuple[int, int]:
    """Return row and column of a pixel that is far from pixels outside of a mask."""
    step = max(1, max(mask.shape) // NAMING_SIDE)
    inside = mask[step // 2 :: step, step // 2 :: step]
    if not inside.any():
        inside, step = mask, 1
    last = inside
    while inside.any():
        last, inside = inside, _shrink(inside)
    row, column = divmod(int(last.argmax()), last.shape[1])
    return row * step + step // 2, column * step + step // 2


def _blend_(pixels: np.ndarray, inside: np.ndarray, color: tuple[int, int, int]) -> None:
    pixels[inside] = (1 - MASK_SHARE) * pixels[inside] + MASK_SHARE * np.array(color)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int], font: Any
) -> None:
    """Write a text on a background of a color, moved into the image."""
    width, height = draw.im.size
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    x = max(2 - left, min(place[0], width - 2 - right))
    y = max(2 - top, min(place[1], height - 2 - bottom))
    draw.rectangle((x + left - 2, y + top - 2, x + right + 2, y + bottom + 2), fill=color)
    draw.text((x, y), text, BLACK if sum(color) > 330 else WHITE, font)


# Files in their runtimes


class _OnnxRuntime:
    """An ONNX file in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4  # errors are raised, too
        # Memory that is kept for images of other sizes doubles the peak, and does not save time.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        self.session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.metadata = self.session.get_modelmeta().custom_metadata_map.get('mmplugin')
        self.name = f'onnxruntime {onnxruntime.__version__}'

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(None, inputs), strict=True))


@functools.cache
def openvino_core() -> Any:
    """Return the core of OpenVINO that all models of this process share, which is never destroyed.

    The CPU plugin of a core replaces the alternate signal stack of its thread, and restores the one before it when it
    is destroyed. After two cores that are destroyed in the order of their creation, the stack is freed memory, and the
    next signal with a handler crashes Python: after a worker of a ``DataLoader`` ends, for example.
    """
    import openvino

    return openvino.Core()


class _OpenVino:
    """An ONNX file or an IR in OpenVINO, on the CPU, in float32."""

    def __init__(self, path: Path, threads: int):
        import openvino

        core = openvino_core()
        model = core.read_model(str(path))
        keys = ['mmplugin'], ['framework', 'mmplugin']  # of an IR, of an ONNX file
        self.metadata = next((str(model.get_rt_info(key).value) for key in keys if model.has_rt_info(key)), None)
        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32', 'NUM_STREAMS': 1}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        self.model = core.compile_model(model, 'CPU', settings)
        self.name = f'openvino {openvino.__version__.partition("-")[0]}'

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self.model(inputs)
        # OpenVINO's optimizer can give an output further names, in any order.
        return {name: np.array(results[output]) for output in self.model.outputs for name in output.get_names()}


RUNTIMES: dict[str, Any] = {'onnxruntime': _OnnxRuntime, 'openvino': _OpenVino}
READS = {'.onnx': ('onnxruntime', 'openvino'), '.xml': ('openvino',)}


def _open(path: Path, runtime: str | None, threads: int) -> Any:
    """Open a file in a runtime that is installed."""
    if path.suffix in CHECKPOINTS:
        raise PredictorError(
            f'{path} is a checkpoint, which needs PyTorch; `mmplugin export CONFIG {path}` writes a file that runs '
            'without it'
        )
    if path.suffix == '.pt2':
        raise PredictorError(f'{path} runs in PyTorch only; export the model with --format onnx or openvino')
    if path.suffix not in READS:
        raise PredictorError(f'{path} must be a file that `mmplugin export` wrote: NAME.onnx, or NAME.xml of OpenVINO')
    _require_file(path)
    if path.suffix == '.onnx':
        _require_one_file(path)
    elif (weights := path.with_suffix('.bin')).exists():
        _require_file(weights)
    _require_intact(path)
    able = READS[path.suffix]
    if runtime is not None and runtime not in able:
        raise PredictorError(f"the runtime '{runtime}' cannot run {path}; allowed: {', '.join(able)}")
    wanted = able if runtime is None else (runtime,)
    installed = [name for name in wanted if importlib.util.find_spec(name) is not None]
    if not installed:
        raise PredictorError(f'{path} needs {" or ".join(wanted)}, which is not installed: `pip install {wanted[0]}`')
    try:
        run = RUNTIMES[installed[0]](path, threads)
        _release_freed_memory()
        return run
    except Exception as error:  # runtimes raise errors of their own
        problem = str(error).strip().splitlines() or [type(error).__name__]
        raise PredictorError(f'{installed[0]} cannot read {path}; export it again ({problem[-1]:.300})') from error


def _release_freed_memory() -> None:
    """Return freed memory to the system: after loading, glibc keeps as much as the weights have."""
    if sys.platform.startswith('linux') and hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)


def _require_one_file(path: Path) -> None:
    """Refuse an ONNX file whose tensors lie in other files: it could name any file of this machine."""
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = content.find(b'location')
        while position >= 0:
            if IN_ANOTHER_FILE.search(content[max(0, position - 16) : position]):
                raise PredictorError(
                    f'{path} keeps tensors in other files, which `mmplugin export` never does; export it again'
                )
            position = content.find(b'location', position + 1)


def _require_intact(path: Path) -> None:
    """Refuse a file that changed after it was written. Files without a checksum are accepted."""
    found = checksum(path)
    if found is not None and found.stored != found.computed:
        raise PredictorError(
            f'{path} is damaged: it is not what `mmplugin export` wrote. Copy it or export it again. If another '
            f'program changed it on purpose, remove the entry {CHECKSUMS[path.suffix]} of its metadata'
        )


class Checksum(NamedTuple):
    """The checksum of a file.

    Args:
        position: Where it is in the file.
        stored: What is there.
        computed: That of the content.
    """

    position: int
    stored: str
    computed: str


def checksum(path: Path, suffix: str = '') -> Checksum | None:
    """Return the SHA-256 checksum of a file that ``mmplugin export`` wrote, or None if it has none.

    That of OpenVINO's ``.xml`` also covers its weights in ``.bin``.

    Args:
        path: The file.
        suffix: Its suffix, if its name does not end in it.
    """
    entry = re.compile(CHECKSUMS[suffix or path.suffix].encode() + rb'.{1,12}?([0-9a-f]{64})', re.DOTALL)
    digest = hashlib.sha256()
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = entry.search(content)
        if match is None:
            return None
        (start, end), stored = match.span(1), match[1].decode()
        with memoryview(content) as view, view[:start] as before, view[end:] as after:
            for part in (before, NO_CHECKSUM.encode(), after):
                digest.update(part)
    weights = path.with_suffix('.bin')
    if path.suffix == '.xml' and weights.exists():
        with weights.open('rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return Checksum(start, stored, digest.hexdigest())


def _read_metadata(text: str | None, path: Path) -> dict[str, Any]:
    """Return the metadata of a file, and refuse files that do not take images."""
    if not text:
        raise PredictorError(
            f'{path} was not written by `mmplugin export`, so its classes, sizes and outputs are not known; export the '
            'model with that command'
        )
    try:
        metadata = json.loads(text) if len(text) <= MOST_TEXT else {}
        found = metadata['format']
        kind, takes = metadata['kind'], metadata['input']
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PredictorError(f'the metadata of {path} are damaged; export it again') from error
    if found != FORMAT:
        raise PredictorError(
            f'{path} has metadata of the format {found}, and this version ({__version__}) reads {FORMAT}; update '
            f'{"mmplugin-runtime" if isinstance(found, int) and found > FORMAT else "the file: export it again"}'
        )
    if kind == 'features' or takes != 'image':
        raise PredictorError(
            f'{path} takes normalized tensors and returns {"maps" if kind == "features" else kind}, for pipelines of '
            'your own; export the whole model without --input tensor and --what'
        )
    if missing := [name for name in REQUIRED if name not in metadata]:
        raise PredictorError(f'the metadata of {path} are damaged: no {", ".join(missing)}; export it again')
    if wrong := [name for name, right in _checks(metadata).items() if not right]:
        raise PredictorError(f'the metadata of {path} are damaged: {", ".join(wrong)}; export it again')
    return metadata


def _checks(metadata: dict[str, Any]) -> dict[str, bool]:
    """Return for each entry of the metadata whether its value is one that the export writes."""
    classes, threshold = metadata['classes'], metadata.get('mask_threshold')
    return dict(
        kind=metadata['kind'] in KINDS,
        classes=isinstance(classes, list)
        and 0 < len(classes) <= MOST_CLASSES
        and all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in classes),
        size=_is_size(metadata['size']),
        min_size=_is_size(metadata['min_size']),
        dynamic=isinstance(metadata['dynamic'], bool),
        logits=isinstance(metadata['logits'], bool),
        resize=isinstance(metadata['resize'], dict) and _is_rule(**metadata),
        resizes=isinstance(metadata.get('resizes', False), bool),
        full_masks=isinstance(metadata.get('full_masks', False), bool),
        mask_threshold=metadata['kind'] != 'masks' or (isinstance(threshold, int | float) and -1 <= threshold <= 1),
    )


def _is_rule(resize: dict[str, Any], size: Any, dynamic: Any, **_: Any) -> bool:
    """Return whether images can be resized so, and fit into a file of a fixed size."""
    rule = dict(resize)
    multiple = rule.pop('multiple', 1)
    if not isinstance(multiple, int) or not 1 <= multiple <= LARGEST_MULTIPLE:
        return False
    if sorted(rule) == ['fit'] and _is_size(rule['fit']):
        return bool(dynamic) or (rule['fit'] == size and not any(side % multiple for side in size))
    return sorted(rule) == ['long', 'short'] and bool(dynamic) and all(map(_is_length, rule.values()))


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST for side in value)
    )


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value <= 1e9


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for a file.

    Args:
        image: The image before resizing, blue, green, red.
        path: Its file, if any.
        inputs: What the file takes.
    """

    image: np.ndarray
    path: str | None
    inputs: dict[str, np.ndarray]


class Predictor:
    """An exported detector or segmentor that takes images and returns arrays.

    Args:
        file: What ``mmplugin export`` wrote: ``NAME.onnx``, or ``NAME.xml`` of OpenVINO.
        score: Objects with a lower score are dropped. Those below the threshold of the export are not in the file.
        runtime: ``onnxruntime`` or ``openvino``; default: the first one that is installed.
        threads: Number of threads; 0 means one for each core.

    Attributes:
        classes: Class names.
        is_segmentation: Whether results have a class map instead of boxes.
        has_masks: Whether objects have masks.
        metadata: What the file says about itself.
        runtime: Name and version of the runtime.
    """

    def __init__(self, file: str | Path, *, score: float = SCORE, runtime: str | None = None, threads: int = 0):
        self.file, self.score = Path(file).expanduser(), score
        self._run = _open(self.file, runtime, threads)
        self.runtime: str = self._run.name
        self.metadata = _read_metadata(self._run.metadata, self.file)
        self.classes = tuple(map(_printable, self.metadata['classes']))
        self.is_segmentation = self.metadata['kind'] == 'classes'
        self.has_masks = self.metadata['kind'] == 'masks'

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """Return the ``Prediction`` of an image, or a list of them for a list of images.

        Args:
            images: A path, an array of 8 or 16 bits with channels in the order blue, green, red, as OpenCV reads it (or
                gray, or with alpha), a PIL image, or a list of these.
        """
        if isinstance(images, ImageLike):
            return self.predict(self.prepare(images))
        return [self.predict(self.prepare(image)) for image in images]

    def prepare(self, image: ImageLike) -> Prepared:
        """Load and resize an image.

        Raises:
            PredictorError: The image cannot be read, or not be resized for the file; the message names it.
        """
        path = str(image) if isinstance(image, str | Path) else None
        pixels = read_image(path) if path is not None else as_bgr(image)
        rows, columns = pixels.shape[:2]
        height, width = self._target(rows, columns, path or f'an array of {"x".join(map(str, pixels.shape))}')
        if self.metadata.get('resizes'):
            return Prepared(pixels, path, dict(image=pixels))
        resized = resize(pixels, height, width)
        if (multiple := self.metadata['resize'].get('multiple', 1)) > 1:
            height, width = (-(-side // multiple) * multiple for side in (height, width))
            resized = resize(resized, height, width)
        if not self.metadata['dynamic']:
            padded = np.zeros((*self.metadata['size'], 3), np.uint8)
            padded[:height, :width] = resized
            resized = padded
        sizes = dict(valid=np.array([height, width]), original=np.array([rows, columns]))
        return Prepared(pixels, path, dict(image=resized, **sizes))

    def _target(self, rows: int, columns: int, name: str) -> tuple[int, int]:
        """Return the size that an image is resized to."""
        rule = self.metadata['resize']
        if 'fit' in rule:
            factor = min(rule['fit'][0] / rows, rule['fit'][1] / columns)
        else:
            factor = min(rule['long'] / max(rows, columns), rule['short'] / min(rows, columns))
        height, width = int(rows * factor + 0.5), int(columns * factor + 0.5)
        if min(height, width) < 1:
            raise PredictorError(f'{name} cannot be resized for the model: {columns}x{rows} pixels are too narrow')
        if max(height, width) > LARGEST:
            raise PredictorError(
                f'{name} becomes {width}x{height} pixels, but files take up to {LARGEST}; cut it into tiles'
            )
        short, long = self.metadata['min_size']
        if self.metadata['dynamic'] and (min(height, width) < short or max(height, width) < long):
            raise PredictorError(
                f'{name} becomes {width}x{height} pixels, and {self.file} is right from {short} pixels of the short '
                f'side and {long} of the long side on; export a file of a fixed size (without --dynamic)'
            )
        return height, width

    def predict(self, prepared: Prepared) -> Prediction:
        """Run the file."""
        try:
            found = self._run(prepared.inputs)
        except Exception as error:  # runtimes raise errors of their own
            problem = str(error).strip().splitlines() or [type(error).__name__]
            raise PredictorError(
                f'{self.file} cannot be run by {self.runtime}; export it again ({problem[-1]:.300})'
            ) from error
        if wrong := self._wrong_result(found, *prepared.image.shape[:2]):
            raise PredictorError(
                f'{self.file} returns {wrong}, which no file of `mmplugin export` does; export it again'
            )
        if self.is_segmentation:
            class_map = found['logits'].argmax(0) if self.metadata['logits'] else found['classes']
            kind = np.uint8 if len(self.classes) <= IGNORED else np.uint16
            return Prediction(prepared.image, self.classes, prepared.path, class_map=class_map.astype(kind))
        chosen = found['scores'] >= self.score
        boxes, masks = found['boxes'][chosen], None
        if self.has_masks:
            height, width = prepared.image.shape[:2]
            if len(boxes) * height * width > MOST_MASK_BYTES:
                raise PredictorError(
                    f'{prepared.path or "an array"}: {len(boxes)} masks of {width}x{height} pixels take more than '
                    f'{MOST_MASK_BYTES >> 30} GiB; use a higher score, or cut the image into tiles'
                )
            masks = found['masks'][chosen]
            if not self.metadata.get('full_masks'):
                masks = paste_masks(masks, boxes, height, width, self.metadata['mask_threshold'])
        scores, labels = found['scores'][chosen], found['labels'][chosen]
        return Prediction(prepared.image, self.classes, prepared.path, boxes, scores, labels, masks)

    def _wrong_result(self, found: dict[str, np.ndarray], rows: int, columns: int) -> str | None:
        """Return what is wrong with the arrays of an image, in words."""
        names = ['boxes', 'scores', 'labels', *(['masks'] if self.has_masks else [])]
        if self.is_segmentation:
            names = ['logits' if self.metadata['logits'] else 'classes']
        if missing := [name for name in names if name not in found]:
            return f'no {", ".join(missing)}'
        arrays = [found[name] for name in names]
        count = len(arrays[1]) if len(names) > 1 and arrays[1].ndim else 0
        shapes: dict[str, list] = dict(boxes=[(count, 4)], scores=[(count,)], labels=[(count,)])
        shapes |= dict(classes=[(rows, columns)], logits=[(len(self.classes), rows, columns)])
        shapes['masks'] = [(count, side, side) for side in arrays[-1].shape[1:2] if 0 < side <= LARGEST_GRID]
        kinds = dict(labels='iu', classes='iu')
        if self.metadata.get('full_masks'):
            shapes['masks'], kinds['masks'] = [(count, rows, columns)], 'b'
        for name, array in zip(names, arrays, strict=True):
            are_labels = name in ('labels', 'classes')
            if array.dtype.kind not in kinds.get(name, 'f') or array.shape not in shapes[name]:
                return f'{name} of {"x".join(map(str, array.shape)) or "one number"} and type {array.dtype}'
            if are_labels and array.size and not 0 <= array.min() <= array.max() < len(self.classes):
                return f'{name} of classes that it does not have'
            if name == 'boxes' and not (np.abs(array) <= FARTHEST).all():
                return 'boxes far outside of the image'
            if not np.isfinite(array).all():
                return f'{name} that are not numbers'
            if name in ('scores', 'masks') and array.size and not -0.001 <= array.min() <= array.max() <= 1.001:
                return f'{name} that are not probabilities'
        return f'{count} objects in one image' if count > MOST_OBJECTS else None


# Images and videos of a command line


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Args:
        path: The file.
        file_name: Path relative to the folder that the user named.
        name: Name of the results: ``file_name`` without the suffix; unique.
    """

    path: Path
    file_name: str
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Item:
    """One image, or one frame of a video.

    Args:
        source: Where it comes from.
        frame: Number of the frame from 0; None for an image.
        fps: Frames per second of the video.
    """

    source: Source
    frame: int | None = None
    fps: float = 0.0

    @property
    def name(self) -> str:
        """Name of the result, without a suffix."""
        return self.source.name if self.frame is None else f'{self.source.name}/{self.frame:06d}'


def find_sources(paths: Iterable[str], results: Path) -> list[Source]:
    """Return the images and videos that the user names: files, and folders with all files below.

    Args:
        paths: Words of the command line.
        results: Folder of the results, which is skipped inside a folder of images.
    """
    found: dict[str, Source] = {}
    for text in paths:
        path = Path(text).expanduser()
        if not path.exists():
            raise PredictorError(f'{path} does not exist; name images, folders or videos')
        files = _in_folder(path, results.resolve()) if path.is_dir() else [(path, Path(path.name))]
        for file, relative in files:
            name = stem = relative.with_suffix('').as_posix()
            if name.lower() in found:
                name = f'{stem}_{relative.suffix.removeprefix(".")}'
            number = 2
            while name.lower() in found:
                name, number = f'{stem}_{number}', number + 1
            shown = relative if name == stem else file
            found[name.lower()] = Source(file, shown.as_posix(), name)
    return list(found.values())


def _in_folder(folder: Path, results: Path) -> list[tuple[Path, Path]]:
    found = []
    for path in sorted(folder.rglob('*')):
        relative = path.relative_to(folder)
        hidden = any(part.startswith('.') for part in relative.parts)
        is_result = results in path.resolve().parents and results != folder.resolve()
        if not hidden and not is_result and path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            found.append((path, relative))
    if not found:
        raise PredictorError(f'{folder} has no images or videos ({" ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))})')
    return found


def _frames(source: Source) -> Iterator[tuple[Item, np.ndarray]]:
    """Yield the frames of a video."""
    try:
        import cv2
    except ImportError as error:
        raise PredictorError(
            f'{source.path}: videos need OpenCV, which is not installed: `pip install opencv-python-headless`'
        ) from error
    _require_file(source.path)
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # its messages do not name the file
    capture = cv2.VideoCapture(str(source.path))
    try:
        fps, number = capture.get(cv2.CAP_PROP_FPS), 0
        intact, frame = capture.read()
        if not intact:
            raise PredictorError(f'{source.path} cannot be decoded: damaged, not a video, or of an unknown codec')
        while intact:
            yield Item(source, number, fps if 1 <= fps <= 1000 else 25.0), frame
            number += 1
            intact, frame = capture.read()
    finally:
        capture.release()


def ahead(items: Iterable[Any], count: int = QUEUE) -> Iterator[Any]:
    """Yield items that a thread computes in advance, as many as the queue takes."""
    queue: Queue[tuple[bool, Any]] = Queue(count)
    abandoned = threading.Event()

    def put(is_item: bool, value: Any) -> None:
        while not abandoned.is_set():
            with suppress(Full):
                queue.put((is_item, value), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(True, item)
                if abandoned.is_set():
                    return
            put(False, None)
        except BaseException as error:  # raised again where the items are used
            put(False, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (found := queue.get())[0]:
            yield found[1]
        if found[1] is not None:
            raise found[1]
    finally:
        abandoned.set()
        thread.join()


# Files of results

Add = Callable[[Any, Prediction], None]  # takes an ``Item``


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` on success."""
    draft = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        yield draft
        with draft.open('rb+') as file:
            os.fsync(file.fileno())  # the data reaches the disk before the name does
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def coco_writer(folder: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Write one COCO file with images, categories (numbered from 1) and annotations with scores.

    The regions of a class map become one annotation for each class. Frames refer to ``videos``, as in CocoVID.
    """
    images: list[dict] = []
    videos: dict[str, int] = {}
    count = 0
    with _draft(folder / COCO_FILE) as draft, draft.open('w', encoding='utf-8') as file:
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        file.write(f'{{"categories": {json.dumps(categories, ensure_ascii=False)},\n"annotations": [')

        def add(item: Any, prediction: Prediction) -> None:
            nonlocal count
            height, width = prediction.size
            image = dict(id=len(images) + 1, file_name=item.source.file_name, height=height, width=width)
            if item.frame is not None:
                video = videos.setdefault(item.source.file_name, len(videos) + 1)
                image.update(video_id=video, frame_id=item.frame)
            images.append(image)
            for annotation in _annotations(prediction, len(classes)):
                count += 1
                annotation = dict(id=count, image_id=image['id'], **annotation, iscrowd=0)
                file.write(('\n' if count == 1 else ',\n') + json.dumps(annotation))

        yield add
        file.write('],\n"images": ' + json.dumps(images, ensure_ascii=False))
        listed = [dict(id=number, name=name) for name, number in videos.items()]
        file.write((',\n"videos": ' + json.dumps(listed, ensure_ascii=False) if listed else '') + '}\n')


def _annotations(prediction: Prediction, classes: int) -> Iterator[dict]:
    if prediction.class_map is not None:
        for label in np.unique(prediction.class_map).tolist():
            if label < classes:
                mask = prediction.class_map == label
                rows, columns = _extent(mask)
                sides = [columns.stop - columns.start, rows.stop - rows.start]
                box = [int(value) for value in (columns.start, rows.start, *sides)]
                yield dict(category_id=label + 1, bbox=box, area=int(mask.sum()), segmentation=run_lengths(mask))
        return
    for i, (x1, y1, x2, y2) in enumerate(prediction.boxes.tolist()):
        box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        found = dict(category_id=int(prediction.labels[i]) + 1, bbox=box, area=round(box[2] * box[3], 2))
        if prediction.masks is not None:
            mask = prediction.masks[i]
            found.update(area=int(mask.sum()), segmentation=run_lengths(mask))
        yield dict(**found, score=round(float(prediction.scores[i]), 5))


def run_lengths(mask: np.ndarray) -> dict:
    """Return a mask as COCO's compressed run lengths, as ``pycocotools.mask.encode`` does."""
    flat = mask.ravel(order='F').astype(bool)
    ends = [*np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size]
    counts = np.diff(ends, prepend=0)  # of zeros, ones, zeros, ...
    if flat[0]:
        counts = np.concatenate([[0], counts])
    left = counts.copy()
    left[3:] -= counts[1:-2]  # differences to the run before the last one
    text = []
    more = np.ones(len(left), bool)
    while more.any():  # five bits at a time, the lowest first
        bits, left = left & 31, left >> 5
        unfinished = more & (left != np.where(bits & 16, -1, 0))
        text.append(np.where(more, bits + 32 * unfinished + 48, 0))
        more = unfinished
    letters = np.stack(text, 1).ravel()
    return dict(size=list(mask.shape), counts=letters[letters > 0].astype(np.uint8).tobytes().decode('ascii'))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names with a number after each that occurred before: ``cat``, ``cat (2)``."""
    taken: dict[str, None] = {}
    for name in names:
        count, unique = 1, name
        while unique in taken:
            count += 1
            unique = f'{name} ({count})'
        taken[unique] = None
    return list(taken)


@contextmanager
def mask_writer(folder: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Write ``masks/NAME.png`` with the number of the class of each pixel, and ``labels.json`` with the numbers.

    Class maps are numbered from 0; pixels of other classes than those wanted are 255. Objects are numbered from 1 on a
    background of 0, the best ones on top. More than 255 classes take files of 16 bits.
    """
    wide = len(classes) > np.iinfo(np.uint8).max
    table: dict[str, int] | None = None

    def add(item: Any, prediction: Prediction) -> None:
        nonlocal table
        if table is None:
            names = classes if prediction.class_map is not None else [BACKGROUND, *classes]
            table = {name: number for number, name in enumerate(_distinct(names))}
            text = json.dumps(table, ensure_ascii=False, indent=1)
            (folder / LABEL_TABLE).write_text(text, encoding='utf-8')
        values = prediction.class_map
        if values is None:
            values = np.zeros(prediction.size)
            for i in np.argsort(prediction.scores, kind='stable'):
                values[prediction.masks[i]] = prediction.labels[i] + 1
        target = folder / MASKS / f'{item.name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint16 if wide else np.uint8)).save(target)

    yield add


class _Drawings:
    """Writer of drawn images, and of drawn frames as videos."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._source: Source | None = None
        self._video: Any = None

    def target(self, source: Source) -> Path:
        return self.folder / f'{source.name}{".mp4" if source.is_video else ".jpg"}'

    def add(self, item: Item, drawing: Image.Image) -> None:
        target = self.target(item.source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.frame is None:
            drawing.save(target, quality=92)
            return
        import cv2

        if self._source is not item.source:
            self.close()
            self._source = item.source
            self._video = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*'mp4v'), item.fps, drawing.size)
            if not self._video.isOpened():
                raise PredictorError(f'{target}: this OpenCV does not write mp4v videos; use --no-draw')
        self._video.write(np.ascontiguousarray(np.asarray(drawing)[..., ::-1]))

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
        self._source = self._video = None


# The command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Predict images, folders or videos with an exported file.')
    add = parser.add_argument
    add('file', metavar='FILE', help='what `mmplugin export` wrote: NAME.onnx, or NAME.xml of OpenVINO')
    add('paths', nargs='+', metavar='PATH', help='images, folders or videos')
    add('--out-dir', default='predictions', help='folder of the results (%(default)s)')
    add('--format', choices=('coco', 'masks'), help='results as COCO JSON or PNG masks; default: by the model')
    add('--score', type=float, default=SCORE, help='lowest score of an object (%(default)s)')
    add('--no-draw', action='store_true', help='write results, but no images or videos')
    add('--runtime', choices=RUNTIMES, help='default: the first one that is installed')
    add('--threads', type=int, default=0, metavar='N', help='default: one for each core')
    add('--version', action='version', version=__version__)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 for an error that the user can fix, or 130 after Ctrl-C."""
    options = parse(argv)
    try:
        return _Command(options).run()
    except PredictorError as error:
        sys.stderr.write(_printable(f'{error}\n', keep='\n'))
        return 2
    except OSError as error:
        reason = error.strerror or error
        sys.stderr.write(_printable(f'--out-dir {options.out_dir} cannot be written to: {reason}') + '\n')
        return 2


class _Command:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace):
        if not 0 <= options.score <= 1 or options.threads < 0:
            raise PredictorError('--score must be a number from 0 to 1, and --threads a number from 0')
        self.options, self.folder = options, Path(options.out_dir).expanduser()
        self.sources = find_sources(options.paths, self.folder)
        self.drawings = _Drawings(self.folder)
        inputs = {source.path.resolve() for source in self.sources}
        for source in self.sources:
            if not options.no_draw and self.drawings.target(source).resolve() in inputs:
                raise PredictorError(f'--out-dir {self.folder}: the drawing would overwrite {source.path}')
        self.predictor = Predictor(options.file, score=options.score, runtime=options.runtime, threads=options.threads)
        self.format = options.format or ('masks' if self.predictor.is_segmentation else 'coco')
        if self.format == 'masks' and self.predictor.metadata['kind'] == 'boxes':
            raise PredictorError('--format masks: this detector predicts boxes without masks; use --format coco')
        self.failures: list[str] = []
        self.images, self.found, self.start = 0, Counter[str](), time.monotonic()
        self.last_line = self.start

    def run(self) -> int:
        """Predict everything, and print what was found."""
        sys.stdout.write(_printable(f'{self.predictor.file} on {self.predictor.runtime}') + '\n')
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = coco_writer if self.format == 'coco' else mask_writer
        stopped = False
        with ExitStack() as files:
            write = files.enter_context(writer(self.folder, self.predictor.classes))
            files.callback(self.drawings.close)
            try:
                # Decoding, the model, and drawing work at the same time, a few images apart.
                for item, prediction in ahead(self._predict(ahead(self._load()))):
                    write(item, prediction)
                    if not self.options.no_draw:
                        self.drawings.add(item, prediction.draw())
                    self._count(prediction)
            except KeyboardInterrupt:
                stopped = True
            if not self.images and not stopped:
                raise PredictorError('\n'.join(self.failures))
        self._report()
        return STOPPED if stopped else 0

    def _load(self) -> Iterator[tuple[Item, Prepared]]:
        for source in self.sources:
            try:
                if source.is_video:
                    for item, frame in _frames(source):
                        yield item, self.predictor.prepare(frame)
                else:
                    yield Item(source), self.predictor.prepare(source.path)
            except PredictorError as error:
                self.failures.append(str(error))

    def _predict(self, images: Iterable[tuple[Item, Prepared]]) -> Iterator[tuple[Item, Prediction]]:
        for item, prepared in images:
            yield item, self.predictor.predict(prepared)

    def _count(self, prediction: Prediction) -> None:
        self.images += 1
        self.found.update(prediction.names)
        now = time.monotonic()
        if now - self.last_line > LINE_EVERY:
            self.last_line = now
            sys.stderr.write(f'{self.images} images, {self.images / (now - self.start):.2f} per second\n')

    def _report(self) -> None:
        seconds = max(time.monotonic() - self.start, 1e-9)
        found = ', '.join(f'{name} {count}' for name, count in self.found.most_common(12))
        unit = 'images with' if self.predictor.is_segmentation else 'objects:'
        lines = [f'{self.images} images in {seconds:.1f} s, {self.images / seconds:.2f} per second']
        lines += [f'{unit} {found}' if found else 'no objects found', f'Results: {self.folder}']
        if self.failures:
            lines += [f'Not read: {len(self.failures)}', *(f'  {failure}' for failure in self.failures)]
        sys.stdout.write(_printable('\n'.join(lines), keep='\n') + '\n')


if __name__ == '__main__':
    sys.exit(main())
