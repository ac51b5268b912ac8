"""Files that appear complete or not at all, and files that can be read without waiting."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.fileio import LocalBackend

from mmplugin.errors import UserError

KINDS = {
    stat.S_IFDIR: 'folder',
    stat.S_IFIFO: 'named pipe',
    stat.S_IFSOCK: 'socket',
    stat.S_IFCHR: 'device',
    stat.S_IFBLK: 'device',
}


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` and rename it to ``path`` on success.

    The parent folder is created. On an error, ``path`` stays as it was and the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        yield draft
        with draft.open('rb+') as file:
            os.fsync(file.fileno())  # the data reaches the disk before the name does
        os.replace(draft, path)
    finally:
        with suppress(OSError):  # a folder that vanished holds no temporary file either
            draft.unlink(missing_ok=True)


def require_file(path: str | Path) -> os.stat_result:
    """Return the status of a regular file; a ``UserError`` refuses others: pipes let a reader wait for ever."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f'{path} is a {KINDS.get(stat.S_IFMT(status.st_mode), "special file")}, not a regular file')
    return status


def reason(error: OSError) -> str:
    """Return why a file cannot be read or written, in words."""
    if error.errno == errno.ENOSPC:
        return 'the disk is full'
    if isinstance(error, FileExistsError | NotADirectoryError):
        return 'there is a file in place of a folder'
    return error.strerror or str(error)


class AtomicBackend(LocalBackend):
    """mmengine's local file backend with atomic writes, so that a kill during a save loses no checkpoint."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file. Errors name this file, not the temporary one."""
        try:
            with atomic_write(filepath) as draft:
                draft.write_bytes(obj)
        except OSError as error:
            raise OSError(error.errno, reason(error), str(filepath)) from error
