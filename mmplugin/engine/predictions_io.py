"""Files of predictions: COCO JSON, YOLO text, PNG masks, images and videos.

Each writer is a context manager that yields a function, which takes an item and its prediction.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmplugin.engine.media import CAMERA, IMAGE, Source
from mmplugin.engine.prediction import Prediction, coco_writer, mask_writer

LABELS, CLASS_LIST = 'labels', 'classes.txt'
LONGEST_STILL = 5.0  # seconds for which one image of a camera may stand in the video
CODECS = (('mp4v', '.mp4'), ('MJPG', '.avi'))


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


Add = Callable[[Item, Prediction], None]


@contextmanager
def yolo_writer(folder: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Write ``labels/NAME.txt`` with ``class x y width height``, or the outline of the mask, relative to the size.

    The layout has no place for scores, and for one outline only: that of the largest part.
    """
    (folder / CLASS_LIST).write_text(''.join(f'{name}\n' for name in classes), encoding='utf-8')

    def add(item: Item, prediction: Prediction) -> None:
        target = folder / LABELS / f'{item.name}.txt'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(''.join(f'{line}\n' for line in _yolo_lines(prediction)), encoding='utf-8')

    yield add


def _yolo_lines(prediction: Prediction) -> Iterator[str]:
    height, width = prediction.size
    for i, (x1, y1, x2, y2) in enumerate(prediction.boxes.tolist()):
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        if prediction.masks is not None:
            values = _outline(prediction.masks[i]) or values
        yield ' '.join([str(prediction.labels[i]), *(f'{value:.6f}' for value in values)])


def _outline(mask: np.ndarray) -> list[float]:
    """Return ``x1 y1 x2 y2 ...`` around the largest part of a mask, relative to its size; empty if there is none."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = max(outlines, key=cv2.contourArea, default=np.empty((0, 1, 2)))[:, 0]
    height, width = mask.shape
    # Points are the middles of pixels.
    return ((points + 0.5) / (width, height)).ravel().tolist() if len(points) >= 3 else []


WRITERS: dict[str, Callable[[Path, Sequence[str]], AbstractContextManager[Add]]] = {
    'coco': coco_writer,
    'yolo': yolo_writer,
    'masks': mask_writer,
}


class Drawings:
    """Writer of drawn images, and of drawn frames as videos. A context manager, which completes the last video."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._video: _VideoFile | None = None

    def add(self, item: Item, drawing: Image.Image) -> None:
        """Write an image, or append a frame to the video of its source."""
        if item.source.kind == IMAGE:
            target = self.target(item.source)
            target.parent.mkdir(parents=True, exist_ok=True)
            drawing.save(target, quality=92)
            return
        if self._video is None or self._video.source is not item.source:
            self.close()
            self._video = _VideoFile(self.folder, item, drawing.size)
        self._video.add(drawing)

    def target(self, source: Source) -> Path:
        """Return the file that a source is drawn into."""
        return self.folder / f'{source.name}{".jpg" if source.kind == IMAGE else CODECS[0][1]}'

    def close(self) -> None:
        """Complete the video that is being written."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def __enter__(self) -> 'Drawings':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _VideoFile:
    """A video, with the codec that this OpenCV has. Images of a camera stay until the next one, in real time."""

    def __init__(self, folder: Path, item: Item, size: tuple[int, int]):
        self.source, self.fps, self.size = item.source, item.fps, size
        self.count, self.start = 0, time.monotonic()
        for codec, suffix in CODECS:
            path = folder / f'{item.source.name}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), item.fps, size)
            if self.writer.isOpened():
                return
        raise OSError(f'this OpenCV writes neither {" nor ".join(codec for codec, _ in CODECS)} videos')

    def add(self, drawing: Image.Image) -> None:
        frame = np.asarray(drawing)[..., ::-1]
        if drawing.size != self.size:
            frame = cv2.resize(frame, self.size)
        repeats = 1
        if self.source.kind == CAMERA:
            due = round((time.monotonic() - self.start) * self.fps) + 1 - self.count
            repeats = max(0, min(due, round(LONGEST_STILL * self.fps)))
        for _ in range(repeats):
            self.writer.write(np.ascontiguousarray(frame))
        self.count += repeats

    def close(self) -> None:
        self.writer.release()
