"""Files in and out: nothing in them is executed, nothing half-written is left behind."""

import argparse
import errno
import hashlib
import os
import pickle
import re
import string
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmplugin.errors import UserError
from mmplugin.files import atomic_write

SAFETENSORS = '.safetensors'


def read(path: str | Path, trust: bool = False) -> Mapping[str, Any]:
    """What a checkpoint file holds, tensors on the CPU and mapped from disk where the format allows it.

    Args:
        path: A file of torch, or of safetensors.
        trust: Run the code that a pickle may hold. Without it, only tensors, plain values and the classes of
            :func:`allowed_globals` are accepted.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{path} is a folder; name the checkpoint file in it')
    if not path.is_file():
        raise UserError(f'{path} does not exist; check the path, or download the file first (docs/weights.md)')
    try:
        if path.stat().st_size == 0:
            raise UserError(f'{path} is empty; download it again')
        return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path, trust)
    except PermissionError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error


def sha256(path: str | Path) -> str:
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') else _digest(file)


def check_target(path: str | Path, force: bool) -> None:
    """Stops before the work where the result could not be written."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f'{path} is a folder; name the file to write')
        if path.exists() and not force:
            raise UserError(f'{path} exists; name another file, or overwrite it with --force')
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise _unwritable(path, f'{folder} is no folder that you may write to')
    except PermissionError as error:
        raise _unwritable(path, error.strerror) from error


def _unwritable(path: Path, reason: str) -> UserError:
    return UserError(f'{path} cannot be written: {reason}; choose another folder')


def write(path: str | Path, content: Mapping[str, Any], force: bool = False) -> None:
    """Writes beside the target, then renames: the target is complete or not there.

    Args:
        path: Ends in .safetensors for a flat dict of tensors in that format; anything else is torch's.
        content: What to write.
        force: Overwrite an existing file.
    """
    path = Path(path)
    check_target(path, force)
    try:
        with atomic_write(path) as draft:
            if path.suffix == SAFETENSORS:
                compact = {key: value.contiguous() for key, value in content.items()}
                _safetensors().torch.save_file(compact, draft, metadata={'format': 'pt'})
            else:
                torch.save(_compact(content), draft)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a folder it may not write to
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            reason = 'the disk is full'
        raise _unwritable(path, reason) from error


def _compact(content: Any) -> Any:
    """Tensors without the rest of a larger storage that they may look at: torch.save would write all of it."""
    if isinstance(content, Mapping):
        return {key: _compact(value) for key, value in content.items()}
    if isinstance(content, torch.Tensor):
        content = content.detach().cpu().contiguous()
        whole = content.untyped_storage().nbytes() == content.numel() * content.element_size()
        return content if whole else content.clone()
    return content


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise UserError(f'{path} is no safetensors file, or a damaged one ({error}); download it again') from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError('.safetensors files need the package safetensors: pip install safetensors') from error
    return safetensors


def allowed_globals() -> list[Any]:
    """Harmless classes that training frameworks leave in checkpoints: options, loss histories, numbers."""
    from mmengine.logging import HistoryBuffer

    core = np._core if hasattr(np, '_core') else np.core
    names = ('numpy.core.multiarray', 'numpy._core.multiarray')  # numpy 1 and numpy 2 wrote different ones
    functions = [
        (getattr(core.multiarray, leaf), f'{name}.{leaf}') for name in names for leaf in ('scalar', '_reconstruct')
    ]
    kinds = [type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)]
    methods = (_history_method, 'builtins.getattr')
    return [argparse.Namespace, HistoryBuffer, methods, *functions, np.ndarray, np.dtype, *kinds]


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which loss histories point to their statistics: for these alone."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'class builtins.getattr of {owner!r}, {name!r}')


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Nothing else may be loaded meanwhile: mmengine allows ``getattr`` itself for the whole process."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _read_torch(path: Path, trust: bool) -> Mapping[str, Any]:
    mapped = zipfile.is_zipfile(path)  # files from before torch 1.6 are no archives and cannot be mapped
    try:
        with _only(() if trust else allowed_globals()):
            return torch.load(path, map_location='cpu', weights_only=not trust, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.findall(r'(?:GLOBAL|Unsupported global:|class) ([\w.]+\.[\w.]+)', str(error))
        if not found:
            raise _damaged(path, error) from error
        raise UserError(
            f'{path} refused: besides tensors it holds {_listed(path, found)}, which could run code on loading. If the '
            f'file comes from someone you trust, use --trust'
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise _damaged(path, error) from error


def _listed(path: Path, found: list[str]) -> str:
    """The names of all classes and functions in a file that are not allowed; nothing is executed for this."""
    allowed = {f'{item.__module__}.{item.__name__}' for item in allowed_globals() if not isinstance(item, tuple)}
    allowed |= {item[1] for item in allowed_globals() if isinstance(item, tuple)}
    others = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    # An allowed name remains when it was used for something else: then the error's own word for it is all there is.
    return ', '.join(sorted({*found, *others} - allowed)) or ', '.join(found)


def _damaged(path: Path, error: Exception) -> UserError:
    with path.open('rb') as file:
        start = file.read(64)
    if not start.translate(None, string.printable.encode()):
        return UserError(f'{path} is a text file, no checkpoint (it starts with {start[:24]!r}); download it again')
    return UserError(
        f'{path} is no checkpoint of torch, or a truncated one ({_size(path)} bytes); compare its size with the one '
        f'at its source and download it again ({type(error).__name__})'
    )


def _size(path: Path) -> str:
    return f'{path.stat().st_size:,}'
