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
from mmplugin.files import reason

try:
    import fcntl
except ImportError:  # Windows: a second run is not noticed there
    fcntl = None  # type: ignore[assignment]

LOCK, STARTED = '.lock', '.started'
DRAFT = re.compile(r'\..+\.(\d+)\.part')


def prepare_folder(path: str | Path, option: str = '--work-dir', bytes_needed: int = 0) -> Path:
    """Create a folder, write a file into it, and compare the free space, before anything else is done.

    Args:
        path: The folder.
        option: Command-line option that names the folder, for messages.
        bytes_needed: Space that the run is known to need, such as one checkpoint.
    """
    path = Path(path)
    probe = path / f'.{uuid.uuid4().hex}.probe'
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'x' * 4096)
    except OSError as error:
        raise UserError(f'{option} {path} cannot be written to: {reason(error)}; choose another folder') from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(path).free
    if free < bytes_needed:
        raise UserError(
            f'{option} {path}: {free / 1e6:.0f} MB are free, but one checkpoint takes about '
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
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it runs and belongs to somebody else
    return True


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the work folder for one training. The system releases the lock when the process ends, however it ends.

    The lock belongs to the process: workers of the data loader, which may outlive a killed training for some seconds,
    do not hold it.
    """
    if fcntl is None:
        yield
        return
    with (Path(path) / LOCK).open('a+', encoding='utf-8') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # either one, depending on the system
            file.seek(0)
            owner = file.read().strip() or 'unknown'
            raise UserError(
                f'--work-dir {path} is in use by another training ({owner}): both would overwrite the same files. '
                'Wait until it ends, or choose another folder'
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        yield


def mark_start(path: str | Path) -> None:
    """Note that a new training starts: older checkpoints in the folder belong to another one."""
    (Path(path) / STARTED).touch()


def saved_since_start(path: str | Path) -> bool:
    """Return whether the training that started last has saved a checkpoint."""
    with suppress(FileNotFoundError):
        started = (Path(path) / STARTED).stat().st_mtime_ns
        return any(file.stat().st_mtime_ns > started for file in Path(path).glob('*.pth'))
    return False
