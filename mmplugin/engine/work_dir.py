"""A work folder that can be written to, and that belongs to one training at a time."""

import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmplugin.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: a second run is not noticed there
    fcntl = None

LOCK = '.lock'
DRAFT = re.compile(r'\..+\.(\d+)\.part')


def prepare_work_dir(path: str | Path, bytes_needed: int = 0) -> Path:
    """Create the folder, write a file into it, and compare the free space, before anything else is done.

    Args:
        path: The work folder.
        bytes_needed: Space that the run is known to need, such as one checkpoint.
    """
    path = Path(path)
    probe = path / f'.{uuid.uuid4().hex}.probe'
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'x' * 4096)
    except OSError as error:
        reason = (
            'there is a file in its place'
            if isinstance(error, FileExistsError | NotADirectoryError)
            else error.strerror
        )
        raise UserError(f'--work-dir {path} cannot be written to: {reason}; choose another folder') from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(path).free
    if free < bytes_needed:
        raise UserError(
            f'--work-dir {path}: {free / 1e6:.0f} MB are free, but one checkpoint takes about '
            f'{bytes_needed / 1e6:.0f} MB; free some space, or choose a folder on another disk'
        )
    return path


def remove_drafts(path: str | Path) -> int:
    """Remove the temporary files of checkpoint saves that were killed; those of running processes stay."""
    removed = 0
    for draft in Path(path).glob('.*.part'):
        match = DRAFT.fullmatch(draft.name)
        if match and not _is_running(int(match[1])):
            with suppress(OSError):
                draft.unlink()
                removed += 1
    return removed


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs and belongs to somebody else
    return True


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the work folder for one training. The system releases the lock when the process ends, however it ends."""
    if fcntl is None:
        yield
        return
    file = (Path(path) / LOCK).open('a+', encoding='utf-8')
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or 'unknown'
            raise UserError(
                f'--work-dir {path} is in use by another training ({owner}): both would overwrite the same files. '
                'Wait until it ends, or choose another folder'
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        yield
    finally:
        file.close()
