"""Checkpoints from a stranger: files that try to run code, take memory, or that are damaged."""

import builtins
import functools
import importlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _history(payload: Any) -> HistoryBuffer:
    history = HistoryBuffer([1.0], [1])
    history._log_history = payload
    return history


def _numpy_scalar(payload: Any) -> Any:
    return Call(
        np._core.multiarray.scalar if hasattr(np, '_core') else np.core.multiarray.scalar, np.dtype('O'), payload
    )


# What runs the code: functions of the canary's path that return an object to pickle.
CALLS: dict[str, Callable[[Path], Any]] = {
    'system': lambda canary: Call(os.system, f'touch {canary}'),
    'mkdir': lambda canary: Call(os.mkdir, str(canary)),
    'eval': lambda canary: Call(eval, f'__import__("os").mkdir({str(canary)!r})'),
    'exec': lambda canary: Call(exec, f'import os; os.mkdir({str(canary)!r})'),
    'import': lambda canary: Call(builtins.__import__, 'antigravity'),
    'getattr': lambda canary: Call(getattr, Call(importlib.import_module, 'os'), 'mkdir'),
    'map': lambda canary: Call(list, Call(map, os.mkdir, [str(canary)])),
    'partial': lambda canary: Call(functools.partial(os.mkdir, str(canary))),
    'numpy_array': lambda canary: np.array([Call(os.mkdir, str(canary))], dtype=object),
    'numpy_scalar': lambda canary: _numpy_scalar(Call(os.mkdir, str(canary))),
    'history': lambda canary: _history(Call(os.mkdir, str(canary))),
}
# How the pickle is packed.
PACKINGS: dict[str, Callable[[Any, Path], None]] = {
    'zip': lambda content, path: torch.save(content, path),
    'legacy': lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    'bare': lambda content, path: path.write_bytes(pickle.dumps(content)),
}


def with_code(call: str, packing: str, path: Path, canary: Path) -> None:
    """Write a checkpoint that creates the canary if it is loaded without restrictions."""
    content = {'state_dict': {'weight': torch.zeros(2)}, 'meta': {'hook': CALLS[call](canary)}}
    PACKINGS[packing](content, path)


def _compressed(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({'state_dict': {'weight': torch.zeros(1 << 20)}}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))


def _changed(path: Path, change: Callable[[bytearray], Any]) -> None:
    torch.save({'state_dict': {'weight': torch.full((4096,), 0.5)}}, path)
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)


def _flip_bits(data: bytearray) -> None:
    data[data.index(struct.pack('<f', 0.5) * 100) + 3] ^= 0x40


def _lying_safetensors(path: Path) -> None:
    header = json.dumps({'weight': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(64))


def _tar(path: Path) -> None:
    with tarfile.open(path, 'w') as archive:
        archive.addfile(tarfile.TarInfo('../escaped.txt'))


def _npz(path: Path) -> None:
    with path.open('wb') as file:
        np.savez(file, weight=np.zeros(2))


def _script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def _state(weight: Any) -> Callable[[Path], None]:
    return lambda path: torch.save({'state_dict': {'weight': weight}}, path)


ESCAPES = '\x1b[31mred\x1b]0;title\x07\nnew line'
# Files that no command may accept, each a function that writes it.
DAMAGED: dict[str, Callable[[Path], None]] = {
    'compressed': _compressed,
    'bit_flip': lambda path: _changed(path, _flip_bits),
    'truncated': lambda path: _changed(path, lambda data: data[: len(data) // 2]),
    'text': lambda path: path.write_text('<html>Quota exceeded</html>\n'),
    'empty': lambda path: path.write_bytes(b''),
    'noise': lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    'list': lambda path: torch.save([torch.zeros(2)], path),
    'tensor': lambda path: torch.save(torch.zeros(2), path),
    'npz': _npz,
    'tar': _tar,
    'torchscript': _script,
    'expanded': _state(torch.zeros(1).expand(1 << 20, 1 << 20)),
    'sparse': _state(torch.zeros(4, 4).to_sparse()),
    'nested': _state(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
    'meta': _state(torch.zeros(3, device='meta')),
    'text_value': _state('weights'),
    'integer_keys': lambda path: torch.save({'state_dict': {1: torch.zeros(2)}}, path),
    'bare_integer_keys': lambda path: torch.save({1: torch.zeros(2)}, path),
    'escape_codes': lambda path: torch.save({'state_dict': {ESCAPES: torch.zeros(2)}}, path),
    'no_weights': lambda path: torch.save({'state_dict': {}}, path),
    'nothing': lambda path: torch.save({}, path),
}
DAMAGED_SAFETENSORS: dict[str, Callable[[Path], None]] = {
    'lying': _lying_safetensors,
    'cut': lambda path: path.write_bytes(b'\x10\0\0\0\0\0\0\0{"weight":'),
}
