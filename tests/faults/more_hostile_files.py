"""A second set of files from a stranger: raw opcodes, abused constructors, lying archives and endless structures."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from faults.hostile_files import Call

PROTO = b'\x80\x02'
HUGE = 6_000_000_000  # bytes that a file of a few hundred bytes asks for


def text(value: str) -> bytes:
    """Return the opcode of a text."""
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    """Return the opcode of a number."""
    data = value.to_bytes(9, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def call(name: str, arguments: bytes) -> bytes:
    """Return the opcodes that call a global with these arguments."""
    module, _, leaf = name.rpartition('.')
    return f'c{module}\n{leaf}\n'.encode() + b'(' + arguments + b'tR'


def storage(elements: int, kind: str = 'FloatStorage', key: str = '0', place: str = 'cpu') -> bytes:
    """Return the opcodes of a storage of an archive."""
    return b'(' + text('storage') + f'ctorch\n{kind}\n'.encode() + text(key) + text(place) + integer(elements) + b'tQ'


def tensor(elements: int = 4, size: int = 4, stride: int = 1, offset: int = 0, **place: str) -> bytes:
    """Return the opcodes of a tensor with one axis."""
    parts = storage(elements, **place), integer(offset), b'(' + integer(size) + b't', b'(' + integer(stride) + b't'
    return call('torch._utils._rebuild_tensor_v2', b''.join(parts) + b'\x89' + call('collections.OrderedDict', b''))


def holding(value: bytes, key: bytes | None = None) -> bytes:
    """Return the pickle of ``{'state_dict': {'weight': value}}``."""
    return PROTO + b'}' + text('state_dict') + b'}' + (key or text('weight')) + value + b'ss.'


def attributes(*names: str) -> bytes:
    """Return the opcodes of a dict that replaces methods of an object by a number."""
    return b'}(' + b''.join(text(name) + b'K\x05' for name in names) + b'u'


def archive(pickled: bytes, path: Path, data: bytes = bytes(16), **members: bytes) -> None:
    """Write an archive as torch does, with this pickle."""
    names = {'data.pkl': pickled, 'byteorder': b'little', 'data/0': data, 'version': b'3\n', **members}
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in names.items():
            file.writestr(f'archive/{name}', content)


def _rewritten(path: Path, change: Callable[[bytearray], Any]) -> None:
    archive(holding(tensor()), path)
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)


def _twice(path: Path, first: bytes, second: bytes) -> None:
    archive(first, path)
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr('archive/data.pkl', second)


def _doubled(start: bytes, join: bytes, levels: int) -> bytes:
    """Return the opcodes of a structure that holds itself twice at every level."""
    return start + b'q\x00' + (b'(h\x00h\x00' + join + b'q\x00') * levels


def _nested(levels: int) -> bytes:
    """Return the opcodes of a tuple that holds itself twice at every level; its hash takes 2^levels steps."""
    return b')' + b'q\x00h\x00\x86' * levels


def _overlapping(path: Path) -> None:
    """Write an archive whose directory lists the same two megabytes 50,000 times: 100 GB of checksums."""
    archive(holding(tensor()), path, **{'data/1': bytes(2 << 20)})
    data = path.read_bytes()
    start = data.index(b'PK\x01\x02')
    entries = 50_000
    first = data.rindex(b'PK\x01\x02', 0, data.index(b'archive/data/1', start))
    entry = data[first : data.index(b'archive/data/1', first) + len('archive/data/1')]
    end = b'PK\x06\x06' + struct.pack('<Q2H2I4Q', 44, 45, 45, 0, 0, entries, entries, entries * len(entry), start)
    where = start + entries * len(entry)
    end += b'PK\x06\x07' + struct.pack('<IQI', 0, where, 1)
    end += b'PK\x05\x06' + struct.pack('<4H2IH', 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:start] + entry * entries + end)


def _touch(canary: Path) -> bytes:
    return text(f'touch {canary}')


def _extension(canary: Path) -> bytes:
    return PROTO + b'\x82\x01' + b'(' + _touch(canary) + b'tR.'


# Pickles that run a command if they are unpickled without restrictions: raw opcodes of all protocols.
CODE: dict[str, Callable[[Path], bytes]] = {
    'protocol 5': lambda canary: pickle.dumps({'x': Call(__import__('os').mkdir, str(canary))}, protocol=5),
    'protocol 4': lambda canary: pickle.dumps({'x': Call(__import__('os').mkdir, str(canary))}, protocol=4),
    'protocol 0': lambda canary: pickle.dumps({'x': Call(__import__('os').mkdir, str(canary))}, protocol=0),
    'INST': lambda canary: f"(S'touch {canary}'\nios\nsystem\n.".encode(),
    'OBJ': lambda canary: b'(cos\nsystem\n' + _touch(canary) + b'o.',
    'NEWOBJ': lambda canary: PROTO + b'csubprocess\nPopen\n((' + text('touch') + text(str(canary)) + b'lt\x81.',
    'in a class': lambda canary: holding(call('posix.system', _touch(canary))),
    'in a rebuild': lambda canary: holding(
        call(
            'torch._tensor._rebuild_from_type_v2',
            b'cos\nsystem\n' + b'ctorch\nTensor\n' + b'(' + _touch(canary) + b't' + b'}',
        )
    ),
    'in a storage': lambda canary: holding(b'(' + text('storage') + call('os.system', _touch(canary)) + b'tQ'),
    'in a module': lambda canary: holding(b'(' + text('module') + call('os.system', _touch(canary)) + b'tQ'),
    'in a key': lambda canary: holding(b'K\x01', call('os.system', _touch(canary))),
    'in a history': lambda canary: holding(
        call('mmengine.logging.history_buffer.HistoryBuffer', b'')
        + b'}' + text('_statistics_methods') + b'}' + text('min') + b'cos\nsystem\nss' + b'b'
    ),
    'in a getattr': lambda canary: holding(
        call('builtins.getattr', b'cmmengine.logging.history_buffer\nHistoryBuffer\n' + text('__init__'))
    ),
}  # fmt: skip


def _safetensors(header: bytes | dict, data: bytes = bytes(64), length: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack('<Q', len(text) if length is None else length) + text + data)

    return write


def _entry(dtype: str = 'F32', shape: Any = (4,), offsets: Any = (0, 16)) -> dict:
    return {'weight': {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}}


def _saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def _cycle() -> dict:
    content: dict = {}
    content['state_dict'] = content['model'] = content
    return content


def _deep(levels: int) -> list:
    content: list = []
    for _ in range(levels):
        content = [content]
    return content


# Files that no command may accept.
DAMAGED: dict[str, Callable[[Path], None]] = {
    'bytearray': lambda path: archive(holding(call('builtins.bytearray', integer(HUGE))), path),
    'float_tensor': lambda path: archive(
        holding(call('torch.FloatTensor', _doubled(b'(G' + struct.pack('>d', 1) + b'l', b'l', 30))), path
    ),
    'void_scalar': lambda path: archive(
        holding(call('numpy._core.multiarray.scalar', call('numpy.dtype', text(f'V{1 << 30}')))), path
    ),
    'object_array': lambda path: archive(
        holding(call('numpy.ndarray', b'(' + integer(HUGE // 8) + b't' + text('O'))), path
    ),
    'history_of_lists': lambda path: archive(
        holding(
            call('mmengine.logging.history_buffer.HistoryBuffer', _doubled(b'(K\x01l', b'l', 30) + b'h\x00')
        ),
        path,
    ),
    'byte_order': lambda path: archive(
        holding(
            call('numpy.dtype', text('f8'))
            + b'(K\x03' + text('>') + b'NNN' + b'J\xff\xff\xff\xff' * 2 + b'K\x00tb'
        ),
        path,
    ),
    'overrun': lambda path: archive(holding(tensor(size=1 << 20)), path),
    'storage_overrun': lambda path: archive(holding(tensor(elements=1 << 40)), path),
    'negative_offset': lambda path: archive(holding(tensor(offset=-4)), path),
    'negative_stride': lambda path: archive(holding(tensor(stride=-1)), path),
    'offset_overflow': lambda path: archive(holding(tensor(offset=(1 << 63) - 1)), path),
    'size_overflow': lambda path: archive(holding(tensor(size=(1 << 62), stride=8)), path),
    'storage_elsewhere': lambda path: archive(holding(tensor(key='../../../../etc/passwd')), path),
    'storage_number': lambda path: archive(holding(b'K\x05Q'), path),
    'unset_memo': lambda path: archive(PROTO + b'h\x07.', path),
    'empty_stack': lambda path: archive(PROTO + b'0000.', path),
    'endless_text': lambda path: archive(PROTO + b'X\xff\xff\xff\xffabc.', path),
    'bare_endless_text': lambda path: path.write_bytes(PROTO + b'X\xff\xff\xff\x7fabc.'),
    'bare_endless_bytes': lambda path: path.write_bytes(b'\x80\x05\x8e' + struct.pack('<Q', 1 << 40) + b'abc.'),
    'two_pickles': lambda path: _twice(path, holding(tensor()), PROTO + b'K\x01.'),
    'traversal': lambda path: archive(holding(tensor(key='../../escaped')), path, **{'../../escaped.txt': b'x'}),
    'no_pickle': lambda path: archive(holding(tensor()), path, **{'data.pkl': b''}),
    'big_endian': lambda path: archive(holding(tensor()), path, byteorder=b'middle'),
    'huge_byteorder': lambda path: archive(holding(tensor()), path, byteorder=b'x' * 1000),
    'encrypted': lambda path: _rewritten(
        path, lambda data: data.replace(b'PK\x03\x04\x14\x00\x00', b'PK\x03\x04\x14\x00\x01').replace(
            b'PK\x01\x02\x14\x03\x14\x00\x00', b'PK\x01\x02\x14\x03\x14\x00\x01'
        )
    ),
    'sizes_of_zip64': lambda path: _rewritten(
        path, lambda data: data[:18] + b'\xff' * 8 + data[26:]
    ),
    'empty_archive': lambda path: zipfile.ZipFile(path, 'w').close(),
    'prefix_and_half': lambda path: _rewritten(path, lambda data: b'x' * 100 + data[20:]),
    'cycle': _saved(_cycle()),
    'deep': lambda path: archive(holding(b']' * 100_000 + b'a' * 99_999), path),
    'nested_key': lambda path: archive(holding(b'K\x01', _nested(40)), path),
    'bare_nested_key': lambda path: path.write_bytes(holding(b'K\x01', _nested(40))),
    'nested_set': lambda path: archive(holding(call('builtins.set', b']' + _nested(40) + b'a')), path),
    'nested_storage': lambda path: archive(
        holding(b'(' + text('storage') + b'ctorch\nFloatStorage\n' + _nested(40) + text('cpu') + b'K\x01tQ'), path
    ),
    'wide_key': lambda path: archive(
        holding(b'K\x01', b'(' + text('x' * 5000) + b'q\x00' + b'h\x00' * 300_000 + b't'), path
    ),
    'many_sets': lambda path: archive(
        holding(b'(](' + b'K\x01' * 100_000 + b'eq\x01' + (b'cbuiltins\nset\n(h\x01tR') * 20_000 + b't'), path
    ),
    'overlapping_members': _overlapping,
    'float8': _saved({'state_dict': {'weight': torch.zeros(4).to(torch.float8_e4m3fn)}}),
    'tensor_attributes': lambda path: archive(
        holding(
            call(
                'torch._utils._rebuild_parameter_with_state',
                tensor() + b'\x89' + call('collections.OrderedDict', b'') + attributes('numel', 'dim', 'shape'),
            )
        ),
        path,
    ),
    'dict_attributes': lambda path: archive(
        PROTO + call('collections.OrderedDict', b'') + text('state_dict') + b'}s' + attributes('items', 'get') + b'b.',
        path,
    ),
    'inner_dict_attributes': lambda path: archive(
        PROTO + b'}' + text('state_dict') + call('collections.OrderedDict', b'') + attributes('items', 'get') + b'bs.',
        path,
    ),
    'long_name': _saved({'state_dict': {'x' * 1_000_000: torch.zeros(2)}}),
    'reversed_name': _saved({'state_dict': {'weight\u202egpj': torch.zeros(2)}}),
    'half_a_character': lambda path: archive(
        holding(tensor(), b'X\x03\x00\x00\x00' + '\ud800'.encode('utf-8', 'surrogatepass')), path
    ),
    'wrong_suffix': lambda path: _safetensors(_entry(), bytes(16))(path),
}  # fmt: skip
DAMAGED_SAFETENSORS: dict[str, Callable[[Path], None]] = {
    'length': _safetensors(_entry(), length=(1 << 63) - 1),
    'length_beyond': _safetensors(_entry(), length=90_000_000),
    'overlap': _safetensors({**_entry(), 'other': _entry()['weight']}, bytes(16)),
    'reversed': _safetensors(_entry(offsets=(16, 0)), bytes(16)),
    'shape_overflow': _safetensors(_entry(shape=(1 << 32, 1 << 32)), bytes(16)),
    'negative_shape': _safetensors(_entry(shape=(-4,)), bytes(16)),
    'unknown_type': _safetensors(_entry(dtype='F31'), bytes(16)),
    'twice': _safetensors(b'{"a":' + json.dumps(_entry()['weight']).encode() + b',"a":5}'),
    'deep': _safetensors(b'{"a":' + b'[' * 100_000 + b'}'),
    'spaces': _safetensors(b' ' * 50_000_000),
    'not_a_dict': _safetensors(b'[1, 2]'),
    'escape_codes': _safetensors({'a\x1b[31m': _entry()['weight']}, bytes(16)),
    'pickle_inside': lambda path: archive(holding(tensor()), path),
}
