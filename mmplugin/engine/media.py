"""Images, videos and cameras that a command line names."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmplugin.data.layouts.tree import IMAGE_SUFFIXES
from mmplugin.errors import UserError
from mmplugin.files import require_file

IMAGE, VIDEO, CAMERA = 'image', 'video', 'camera'
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.3gp', '.ogv', '.flv')
DEFAULT_FPS = 25.0  # of videos that do not say it
LEAST_DECODED = 0.9  # share of the frames that a video promises; the promise is an estimate in some formats


@dataclass(frozen=True)
class Source:
    """An image, a video or a camera.

    Args:
        kind: ``IMAGE``, ``VIDEO`` or ``CAMERA``.
        path: The file; for a camera, its number.
        file_name: Path relative to the folder that the user named; unique.
        name: Name of the results: ``file_name`` without the suffix; unique.
    """

    kind: str
    path: str
    file_name: str
    name: str


def find_sources(paths: Iterable[str], results: Path) -> list[Source]:
    """Return what the user names: files, folders with all files below, patterns with ``*``, numbers of cameras.

    Args:
        paths: Words of the command line.
        results: Folder of the results, which is skipped inside a folder of images.
    """
    found: list[tuple[str, Path, Path]] = []  # kind, path, file name
    cameras = []
    for text in paths:
        path = Path(text).expanduser()
        match = re.fullmatch(r'(?:camera:)?(\d+)', text)
        if match and not path.exists():
            cameras.append(match[1])
        elif path.is_dir():
            found += _in_folder(path, results)
        elif path.exists():
            found.append((_kind(path), path, Path(path.name)))
        elif text.startswith('camera:'):
            raise UserError(f'{text} is not a camera; cameras are numbered from camera:0')
        elif glob.has_magic(text):
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
            if not files:
                raise UserError(f'{text} matches no file; put the pattern in quotes, and check it with `ls`')
            found += [(_kind(file), file, Path(file.name)) for file in files]
        else:
            raise UserError(f'{text} does not exist; name images, folders, videos, patterns in quotes, or camera:0')
    if cameras and (found or len(cameras) > 1):
        raise UserError(f'camera:{cameras[0]} has no end, so nothing can follow it; name the camera alone')
    return [Source(CAMERA, number, f'camera:{number}', f'camera_{number}') for number in cameras] + _unique(found)


def _kind(path: Path) -> str:
    return VIDEO if path.suffix.lower() in VIDEO_SUFFIXES else IMAGE


def _in_folder(folder: Path, results: Path) -> list[tuple[str, Path, Path]]:
    found = []
    root, results = folder.resolve(), results.resolve()
    skipped = results.relative_to(root) if root in results.parents else None
    for path in sorted(folder.rglob('*')):
        relative = path.relative_to(folder)
        hidden = any(part.startswith('.') for part in relative.parts)
        is_result = skipped is not None and relative.is_relative_to(skipped)
        if not hidden and not is_result and path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            found.append((_kind(path), path, relative))
    if not found:
        raise UserError(f'{folder} has no images or videos ({" ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))})')
    return found


def _unique(found: list[tuple[str, Path, Path]]) -> list[Source]:
    """Give results names of their own: a.jpg and a.png become a and a_png, other doubles get a number."""
    sources: dict[str, Source] = {}
    for kind, path, file_name in found:
        stem = file_name.with_suffix('').as_posix()
        name = stem
        if name.lower() in sources:
            name = f'{stem}_{file_name.suffix.removeprefix(".")}'
        number = 2
        while name.lower() in sources:
            name, number = f'{stem}_{number}', number + 1
        shown = file_name.as_posix() if name == stem else path.as_posix()
        sources[name.lower()] = Source(kind, str(path), shown, name)
    return list(sources.values())


class Video:
    """The frames of a video file or a camera, BGR.

    Args:
        source: What to open.

    Attributes:
        fps: Frames per second.
        length: Number of frames that the file promises; None for a camera, and if unknown.
    """

    def __init__(self, source: Source):
        self.source = source
        if source.kind == VIDEO:
            require_file(source.path)
        self._first: np.ndarray | None
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # its messages do not name the file
        level = cv2.getLogLevel()
        cv2.setLogLevel(0)
        try:
            self._capture = cv2.VideoCapture(int(source.path) if source.kind == CAMERA else source.path)
            opened, self._first = self._capture.read() if self._capture.isOpened() else (False, None)
        finally:
            cv2.setLogLevel(level)
        if not opened:
            self._capture.release()
            raise UserError(self._refusal())
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 1 <= fps <= 1000 else DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length = int(count) if source.kind == VIDEO and 0 < count < 1e9 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        frame: np.ndarray | None = self._first
        self._first = None
        count = 0
        try:
            while frame is not None:
                yield frame
                count += 1
                intact, frame = self._capture.read()
                frame = frame if intact else None
        finally:
            self._capture.release()
        if self.length and count < LEAST_DECODED * self.length:
            raise UserError(f'{self.source.path}: only {count} of about {self.length} frames could be decoded')

    def _refusal(self) -> str:
        if self.source.kind == CAMERA:
            cameras = sorted(str(path) for path in Path('/dev').glob('video[0-9]*'))
            hint = f'found {", ".join(cameras)}; another program may use it' if cameras else 'no camera was found'
            return f'camera:{self.source.path} cannot be opened or gives no image ({hint})'
        if Path(self.source.path).stat().st_size == 0:
            return f'{self.source.path} is empty'
        return (
            f'{self.source.path} cannot be decoded: it is damaged, not a video, or of a codec that OpenCV lacks; '
            'convert it, for example with `ffmpeg -i FILE -c:v libx264 OUT.mp4`'
        )
