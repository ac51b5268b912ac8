"""The files below a folder of the user, listed once."""

import os
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath

from mmplugin.errors import UserError
from mmplugin.files import require_file

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
RESULTS = 'work_dirs'  # default parent of work folders, which may lie below the data
LARGEST_TEXT = 1 << 30  # bytes; the annotations of COCO's training set are 450 MB


class Tree:
    """The files below a folder, as sorted relative paths with forward slashes.

    Hidden files and folders, work folders and links that lead back to a parent folder are excluded.

    Args:
        root: The folder.
        exclude: A folder of results, which may lie below ``root``.
    """

    def __init__(self, root: Path, exclude: Path | None = None):
        self.root = root
        self._exclude = os.path.realpath(exclude) if exclude else ''

    @cached_property
    def files(self) -> list[str]:
        """All files."""
        found, visited = [], set()
        for folder, folders, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited or real == self._exclude:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith('.') and name != RESULTS)
            below = os.path.relpath(folder, self.root).replace(os.sep, '/')
            prefix = '' if below == '.' else f'{below}/'
            found += [prefix + name for name in names if not name.startswith('.')]
        return sorted(found)

    def select(self, *suffixes: str) -> list[str]:
        """Return the files with one of the suffixes, in lower or upper case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def images(self) -> list[str]:
        """The files whose suffix is one of ``IMAGE_SUFFIXES``."""
        return self.select(*IMAGE_SUFFIXES)

    def text(self, name: str) -> str:
        """Read a text file; a ``UserError`` names a file that is not text."""
        return read_text(self.root / name)

    def fingerprint(self) -> str:
        """Return a digest of the names, sizes and modification times of all files."""
        digest = sha256()
        for name in self.files:
            try:
                stat = os.stat(os.path.join(self.root, name))
            except OSError:  # a broken link
                continue
            digest.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode('utf-8', 'surrogateescape'))
        return digest.hexdigest()


def read_text(path: Path) -> str:
    """Read a text file; a ``UserError`` names a file that cannot be read, or that is not text."""
    try:
        if require_file(path).st_size > LARGEST_TEXT:
            raise UserError(f'{path} has more than {LARGEST_TEXT >> 20} MiB, which no annotation file has')
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text ({error}); save it as UTF-8') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


def parent(name: str) -> str:
    """Return the folder of a relative path, an empty string for the root."""
    return name.rpartition('/')[0]


def stem(name: str) -> str:
    """Return the name of a file without folder and suffix."""
    return PurePosixPath(name).stem


def nearest(name: str, candidates: Sequence[str]) -> list[str]:
    """Return the candidates that share most folders with a path, counted from the end and from the start."""
    parts = name.split('/')[:-1]

    def shared(candidate: str) -> int:
        others = candidate.split('/')[:-1]
        return sum(part in others for part in parts)

    most = max(map(shared, candidates), default=0)
    return [candidate for candidate in candidates if shared(candidate) == most]
