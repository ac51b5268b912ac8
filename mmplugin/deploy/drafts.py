"""Exported files under another name until they are proven."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def draft(path: Path, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a path in the folder of ``path`` with the same suffix, and rename it to ``path`` on success.

    On an error, and on Ctrl-C, files that were there before stay as they were, and drafts are removed.

    Args:
        path: A file, or a folder as CoreML's are.
        beside: Suffixes of files that belong to it, such as ``.bin`` of OpenVINO's IR. They are renamed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    pairs = [(start.with_suffix(suffix), path.with_suffix(suffix)) for suffix in (*beside, path.suffix)]
    try:
        yield start
        for source, target in pairs:
            _sync(source)
            if target.is_dir():  # which os.replace refuses
                shutil.rmtree(target)
            os.replace(source, target)
    finally:
        for source, _ in pairs:
            with suppress(OSError):
                shutil.rmtree(source) if source.is_dir() else source.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the data of a file is on the disk, so that it arrives there before the name does."""
    if path.is_file():
        with path.open('rb+') as file:
            os.fsync(file.fileno())
