"""Checks of a file from a stranger, before and after it is unpickled. Nothing in it is executed."""

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from mmplugin.errors import UserError
from mmplugin.text import printable

CHUNK = 1 << 20  # bytes read at a time
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
LARGEST_EXPANDED = 1 << 30  # bytes that a tensor may have without storing them, as torch.Tensor.expand() makes it


def check_archive(path: Path) -> None:
    """Refuse a checkpoint archive that is compressed or damaged.

    ``torch.save`` never compresses, so a compressed member can only exist to take more memory than the file has bytes.
    The checksum of every member is compared, which ``torch.load`` does not do. Memory use is one chunk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
            for member in () if compressed else archive.infolist():
                with archive.open(member) as content:  # raises BadZipFile at the end if the checksum differs
                    while content.read(CHUNK):
                        continue
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(
            f'{path} is damaged ({printable(str(error)) or type(error).__name__}); download it again or restore a copy'
        ) from error
    if compressed:
        raise UserError(
            f'{path} refused: its member {printable(compressed[0])} is compressed, unlike anything that torch.save '
            'writes, and could expand to any size. Save it again with torch.save'
        )


def pickle_globals(path: Path, limit: int = 1 << 24) -> list[str]:
    """Return the classes and functions that a pickle names, without loading it.

    Files of old versions of torch are several pickles, one after the other.
    """
    with path.open('rb') as file:
        data = io.BytesIO(file.read(limit))
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in chain.from_iterable(iter(lambda: pickletools.genops(data), None)):
            if opcode.name in ('GLOBAL', 'INST'):
                names.append(str(argument).replace(' ', '.'))
            elif opcode.name == 'STACK_GLOBAL' and len(strings) > 1:
                names.append('.'.join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except Exception:  # whatever a damaged or hostile pickle provokes: the names before it count
        return names
    return names


def check_content(path: Path, content: Any) -> None:
    """Refuse names that a terminal would obey, and tensors that hold no values, or a few bytes for 2^60 elements."""
    if not isinstance(content, Mapping):
        return  # the caller names the type that it expects
    for name, value in _walk(content):
        if not name.isprintable():
            raise UserError(f'{path} refused: the name {printable(name)!r} contains control characters')
        if isinstance(value, torch.Tensor) and (problem := _problem(value)):
            raise UserError(
                f'{path} refused: {printable(name)} is {problem}; expected a dense tensor with its own values'
            )


def _problem(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested or tensor.layout != torch.strided:
        return f'a {"nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")} tensor'
    if tensor.is_meta:
        return 'a meta tensor without values'
    if tensor.is_quantized:
        return 'a quantized tensor'
    if tensor.dtype not in (*REAL, *WHOLE):  # torch can store others, but lacks the operators to check them
        return f'of type {str(tensor.dtype).removeprefix("torch.")}'
    declared, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if declared > max(stored, LARGEST_EXPANDED):
        return f'declared as {" x ".join(map(str, tensor.shape))} elements, but stored in {stored} bytes'
    return None


def _walk(content: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Every value inside dicts, lists and tuples, with its path; cycles are not followed."""
    stack, seen = [(name, content)], set()
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            stack.extend((f'{name}.{key}' if name else str(key), inner) for key, inner in items)
        else:
            yield name, value
