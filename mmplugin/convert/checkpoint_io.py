"""Reading and writing of checkpoints: code in them is not run, and files are written completely or not at all."""

import argparse
import hashlib
import os
import pickle
import re
import string
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmplugin.errors import UserError
from mmplugin.files import atomic_write, reason
from mmplugin.text import printable

from .untrusted import check_archive, check_content, check_memory, check_nesting, pickle_globals

SAFETENSORS = '.safetensors'


def read(path: str | Path, trust: bool = False) -> Mapping[str, Any]:
    """Read a checkpoint. Tensors are on the CPU, and memory-mapped if the format supports it.

    Args:
        path: File of ``torch.save`` or of safetensors.
        trust: Run the code that a pickle may contain. By default, only tensors, plain values and the classes of
            ``allowed_globals`` are accepted.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{path} is a folder; use the path of the checkpoint in it')
    if not path.is_file():
        raise UserError(f'{path} does not exist; check the path, or download the file first (docs/weights.md)')
    try:
        if path.stat().st_size == 0:
            raise UserError(f'{path} is empty; download it again')
        content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path, trust)
    except PermissionError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
    check_content(path, content)
    return content


def sha256(path: str | Path) -> str:
    """Return the SHA-256 checksum of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_target(path: str | Path, force: bool) -> None:
    """Raise an error if ``path`` cannot be written, before any work is done."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f'{path} is a folder; use the path of a file')
        if path.exists() and not force:
            raise UserError(f'{path} exists; use another path, or overwrite it with --force')
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise _unwritable(path, f'{folder} is not a folder, or you have no permission')
    except PermissionError as error:
        raise _unwritable(path, error.strerror or 'permission denied') from error


def _unwritable(path: Path, reason: str) -> UserError:
    return UserError(f'{path} cannot be written: {reason}; use another folder')


def write(path: str | Path, content: Mapping[str, Any], force: bool = False) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: File to write. If it ends in .safetensors, ``content`` must be a flat dict of tensors.
        content: Content of the checkpoint.
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
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if it has no permission
        raise _unwritable(path, reason(error) if isinstance(error, OSError) else str(error).splitlines()[0]) from error


def _compact(content: Any) -> Any:
    """Copy tensors that are views of a larger storage, because torch.save would write the whole storage."""
    if isinstance(content, Mapping):
        return {key: _compact(value) for key, value in content.items()}
    if isinstance(content, torch.Tensor):
        content = content.detach().cpu().contiguous()
        whole = content.untyped_storage().nbytes() == content.numel() * content.element_size()
        return content if whole else content.clone()
    return content


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise UserError(f'{path} is not a safetensors file, or damaged ({error}); download it again') from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError('.safetensors files require the package safetensors: pip install safetensors') from error
    return safetensors


def allowed_globals() -> list[Any]:
    """Return the harmless classes that training frameworks store in checkpoints: options, loss histories, numbers."""
    from mmengine.logging import HistoryBuffer

    core = np._core if hasattr(np, '_core') else np.core
    # numpy 1 and numpy 2 write different names. Pairs of function and name require torch 2.7.
    names = ('numpy.core.multiarray', 'numpy._core.multiarray')
    functions = [
        (getattr(core.multiarray, leaf), f'{name}.{leaf}') for name in names for leaf in ('scalar', '_reconstruct')
    ]
    kinds = [type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)]
    methods = (_history_method, 'builtins.getattr')
    return [argparse.Namespace, HistoryBuffer, methods, *functions, np.ndarray, np.dtype, *kinds]


def _history_method(owner: Any, name: str) -> Any:
    """Replace ``getattr``, with which a loss history refers to its statistics. Allow nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'class builtins.getattr of {owner!r}, {name!r}')


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Allow only these globals. Others in the process may be too permissive: mmengine allows ``getattr``."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _read_torch(path: Path, trust: bool) -> Mapping[str, Any]:
    mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are not archives and cannot be mapped
    if mapped:
        check_archive(path)

    def attempt() -> Mapping[str, Any]:
        with _only(() if trust else allowed_globals()), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Detected pickle protocol')  # it is read all the same, or refused
            return torch.load(path, map_location='cpu', weights_only=not trust, mmap=mapped)

    if not trust:
        check_nesting(path)
        check_memory(path, attempt)
    try:
        return attempt()
    except pickle.UnpicklingError as error:
        found = re.findall(r'(?:GLOBAL|Unsupported global:|class) ([\w.]+\.[\w.]+)', str(error))
        forbidden = _forbidden(path, found)
        if not forbidden and not mapped:
            raise _damaged(path, error) from error
        blocked = printable(forbidden or _blocked(error))
        raise UserError(
            f'{path} refused: it contains {blocked}, which could run code when loaded. '
            f'If you trust the source of the file, use --trust'
        ) from error
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # torch's unpickler raises whatever the bytes of a damaged file provoke
        raise _damaged(path, error) from error


def _forbidden(path: Path, found: list[str]) -> str:
    """Return the names of all forbidden classes and functions in a file, without running anything."""
    allowed = {f'{item.__module__}.{item.__name__}' for item in allowed_globals() if not isinstance(item, tuple)}
    allowed |= {item[1] for item in allowed_globals() if isinstance(item, tuple)}
    try:
        archive = zipfile.is_zipfile(path)
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path) if archive else pickle_globals(path)
    except Exception:  # what stopped the unpickler may stop the search, too
        others = []
    # If an allowed function was called with forbidden arguments, only the error message names it.
    return ', '.join(sorted({*found, *others} - allowed)) or ', '.join(found)


def _blocked(error: Exception) -> str:
    """Return torch's own reason: an archive whose checksums are right was blocked, not damaged."""
    match = re.search(r'WeightsUnpickler error:\s*(.+)', str(error))
    return f'a forbidden operation ({match[1].strip()})' if match else 'a forbidden operation'


def _damaged(path: Path, error: Exception) -> UserError:
    with path.open('rb') as file:
        start = file.read(64)
    if not start.translate(None, string.printable.encode()):
        return UserError(f'{path} is a text file, not a checkpoint (it starts with {start[:24]!r}); download it again')
    return UserError(
        f'{path} is not a torch checkpoint, or truncated ({path.stat().st_size:,} bytes, {type(error).__name__}); '
        'compare its size with the original and download it again'
    )
