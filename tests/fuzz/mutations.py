"""Mutations of files: of their bytes, of the parts that they consist of, and of the objects that they hold."""

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from .targets import SIZE, checkpoint, published, saved

TEXTS = ('', '10', 'x' * 3000, '\x1b[31mred\x1b[0m\n', '\ud800', '../../up', 'a\x00b', 'é' * 40, '__class__', '[bold]')
NUMBERS = (
    0,
    1,
    -1,
    0.5,
    -0.0,
    1e9,
    1e30,
    -1e300,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**32 - 1,
    2**63,
    10**400,
)
GLOBALS = (
    b'cposix\nsystem\n', b'cbuiltins\neval\n', b'cbuiltins\ngetattr\n', b'ctorch\nload\n', b'cos\nmkdir\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch._utils\n_rebuild_sparse_tensor\n', b'ctorch\nFloatStorage\n',
    b'cnumpy.core.multiarray\nscalar\n', b'ccollections\nOrderedDict\n', b'cargparse\nNamespace\n',
)  # fmt: skip


def nested(depth: int) -> list:
    """Return a list in a list in a list ..."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def integer(random: Random) -> int:
    """Return a number around a power of two, or a small one."""
    return random.choice((random.randrange(-2, 20), (1 << random.randrange(65)) + random.randrange(-1, 2)))


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Flip bits, truncate, delete, duplicate, insert or overwrite."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        start = random.randrange(len(data) + 1)
        stop = min(len(data), start + random.choice((1, 4, 64, 1024)))
        match random.choice(('flip', 'flip', 'truncate', 'delete', 'duplicate', 'insert', 'integer')):
            case 'flip' if start < len(data):
                data[start] ^= 1 << random.randrange(8)
            case 'truncate':
                del data[start:]
            case 'delete':
                del data[start:stop]
            case 'duplicate':
                data[start:start] = data[start:stop]
            case 'insert':
                data[start:start] = random.randbytes(random.choice((1, 8, 100)))
            case 'integer':
                size = random.choice((2, 4, 8))
                data[start : start + size] = (integer(random) % (1 << 8 * size)).to_bytes(size, 'little')
    return bytes(data)


def mutate_pickle(content: bytes, random: Random) -> bytes:
    """Mutate the bytes of a pickle, or insert or replace the name of a class."""
    if random.random() < 0.5:
        return mutate_bytes(content, random)
    start = content.find(b'c', random.randrange(len(content) or 1))
    stop = content.find(b'\n', content.find(b'\n', start) + 1) + 1
    if start < 0 or stop <= start:
        return content + random.choice(GLOBALS)
    return content[:start] + random.choice(GLOBALS) + content[stop if random.random() < 0.7 else start :]


def mutate_archive(content: bytes, random: Random) -> bytes:
    """Mutate the members of an archive and write it again with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = random.choice([*members, *[name for name in members if name.endswith('.pkl')] * 3])
    compression = zipfile.ZIP_STORED
    match random.choice(('content', 'content', 'content', 'remove', 'rename', 'compress', 'double', 'add')):
        case 'content':
            mutate = mutate_pickle if name.endswith('.pkl') else mutate_bytes
            members[name] = mutate(members[name], random)
        case 'remove':
            del members[name]
        case 'rename':
            members[name.replace('data', '../data') if random.random() < 0.5 else text(random)] = members.pop(name)
        case 'compress':
            compression = zipfile.ZIP_DEFLATED
            members['archive/data/9'] = bytes(1 << 20)
        case 'double':
            members[name.replace('archive', 'other')] = members[name]
        case 'add':
            members[text(random)] = text(random).encode(errors='replace')
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name, data in members.items():
            archive.writestr(name.replace('\ud800', '?') or '?', data)
    return file.getvalue()


def text(random: Random) -> str:
    """Return an odd name."""
    return random.choice(TEXTS)


def odd_tensor(random: Random, like: torch.Tensor) -> Any:
    """Return a tensor that is odd in one way, or another object."""
    shape = tuple(like.shape)
    makers: tuple[Callable[[], Any], ...] = (
        lambda: torch.full((), random.choice(NUMBERS[:12]), dtype=torch.float64).float().expand(shape),
        lambda: (
            torch.zeros(()).to(random.choice((torch.int64, torch.bool, torch.complex64, torch.float64))).expand(shape)
        ),
        lambda: torch.zeros(()).to(random.choice((torch.bfloat16, torch.float16, torch.float8_e4m3fn))).expand(shape),
        lambda: torch.zeros(()).expand(shape[::-1]),
        lambda: torch.zeros(()).expand(*shape, 1),
        lambda: torch.zeros(()).expand(tuple(min(abs(integer(random)), 2**30) for _ in shape)[:2]),
        lambda: torch.zeros(0),
        lambda: torch.zeros(shape, device='meta'),
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: torch.nn.Parameter(torch.zeros(())),
        lambda: torch.zeros(1, 1).as_strided((1 << 20, 1 << 20), (0, 0)),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: random.choice((None, 1, 'x', [], {}, {'a': torch.zeros(1)}, nested(200))),
    )
    return random.choice(makers)()


def is_plain(value: Any) -> bool:
    """Return whether a value is a tensor with a shape."""
    return isinstance(value, torch.Tensor) and not value.is_nested


def mutate_weights(weights: dict, random: Random) -> None:
    """Remove, rename, duplicate or replace some tensors, in place."""
    for _ in range(random.choice((1, 1, 3, 30))):
        keys = [key for key, value in weights.items() if isinstance(key, str) and is_plain(value)]
        if not keys:
            return
        key = random.choice(keys)
        match random.choice(('remove', 'rename', 'duplicate', 'replace', 'replace', 'prefix')):
            case 'remove':
                del weights[key]
            case 'rename':
                other = random.choice(keys)
                name = random.choice((other, text(random), key.upper(), key + '.table', 'module.' + key, 7, ('a', 'b')))
                weights[name] = weights.pop(key)
            case 'duplicate':
                parts = key.split('.')
                weights['.'.join(random.choice((part, '0', '9', '99')) for part in parts)] = weights[key]
            case 'replace':
                weights[key] = odd_tensor(random, weights[key])
            case 'prefix':
                prefix = random.choice(('backbone.', 'module.', 'neck.', 'head.', 'model.'))
                weights.update({prefix + key: weights.pop(key) for key in keys})


def mutate_tree(value: Any, random: Random, odd: Callable[[Random, Any], Any]) -> Any:
    """Return plain values (dicts, lists, numbers, texts) with one of them changed."""
    if isinstance(value, dict) and value and random.random() < 0.95:
        value, key = dict(value), random.choice([*value])
        match random.choice(('inside',) * 12 + ('remove', 'rename', 'add')):
            case 'inside':
                value[key] = mutate_tree(value[key], random, odd)
            case 'remove':
                del value[key]
            case 'rename':
                value[text(random)] = value.pop(key)
            case 'add':
                value[text(random)] = odd(random, None)
        return value
    if isinstance(value, list | tuple) and value and random.random() < 0.9:
        values, index = list(value), random.randrange(len(value))
        match random.choice(('inside',) * 12 + ('remove', 'duplicate', 'swap')):
            case 'inside':
                values[index] = mutate_tree(values[index], random, odd)
            case 'remove':
                del values[index]
            case 'duplicate':
                values.insert(0, values[index])
            case 'swap':
                values.reverse()
        return type(value)(values)
    return odd(random, value)


def odd_value(random: Random, value: Any) -> Any:
    """Return a value that is odd in a place of plain values."""
    return random.choice((
        lambda: random.choice(NUMBERS),
        lambda: integer(random),
        lambda: text(random),
        lambda: random.choice((None, True, [], {}, [None], [[]], {'a': 1}, nested(50))),
        lambda: [value] * random.choice((1, 2, 100)),
        lambda: {'id': value},
        lambda: value * random.choice((-1, 2, 10**6)) if isinstance(value, int | float) else str(value),
    ))()  # fmt: skip


def odd_annotation(random: Random, value: Any) -> Any:
    """Return a value that is odd in a COCO file."""
    if random.random() < 0.6:
        return odd_value(random, value)
    counts = random.choice(
        ([4e9], [2**32 - 1] * 2, [-5, 1605], [0] * 9, [SIZE * SIZE], 'zzzz!!!', '0' * 500, '\udcff', [None])
    )
    side = random.choice((SIZE, 0, -1, 60000, 2**31, 1.5, '40'))
    number = random.choice(NUMBERS)
    return random.choice((
        {'size': [side, SIZE], 'counts': counts},
        {'size': side, 'counts': counts},
        {'counts': counts},
        [[number, 1, 20, 1, 20, 20]],
        [[1, 1, 20, 1, 20, number]],
        [[1, 1, 1]],
        [[number] * 6] * 3,
        [1, 2, 3, 4, 5, 6],
        [number, number, number, number],
        [5, 5, number, 5],
    ))  # fmt: skip


def mutate_checkpoint(family: str, zipped: bool, random: Random) -> bytes:
    """Mutate what a checkpoint holds, then save it."""
    source = published() if family == 'timm' else checkpoint(family)
    content: Any = dict(source)
    if family == 'timm':
        mutate_weights(content, random)
        content = random.choice((content, {'model': content}, {'model_ema': content}, [content], content))
    elif random.random() < 0.5:
        content['state_dict'] = dict(content['state_dict'])
        mutate_weights(content['state_dict'], random)
    elif random.random() < 0.8:
        content['meta'] = mutate_tree(content['meta'], random, odd_value)
    else:
        content[random.choice(('state_dict', 'head', 'meta', 'model', 'imagenet_tables', 'model_ema'))] = random.choice(
            (content['state_dict'], {'head.weight': torch.zeros(2, 3)}, {'x': 1}, {7: torch.zeros(1)}, None, [], 'x')
        )
    return saved(content, zipped)


def mutate_coco(content: bytes, random: Random) -> bytes:
    """Mutate values of a COCO file, or nest one deeper than a parser can follow."""
    tree = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        tree = mutate_tree(tree, random, odd_annotation)
    written = json.dumps(tree)
    if random.random() < 0.02:
        written = written.replace('40', '[' * 200_000 + ']' * 200_000, 1)
    return written.encode()


def mutate_png(content: bytes, random: Random) -> bytes:
    """Mutate the chunks of a PNG and write it again with right checksums."""
    chunks, position = [], 8
    while position < len(content):
        (length,) = struct.unpack('>I', content[position : position + 4])
        chunks.append([content[position + 4 : position + 8], content[position + 8 : position + 8 + length]])
        position += 12 + length
    for _ in range(random.choice((1, 1, 2))):
        chunk = random.choice(chunks)
        match random.choice(('header', 'header', 'pixels', 'remove', 'double', 'bytes', 'add')):
            case 'header':
                sides = [random.choice((SIZE, SIZE, 0, 1, 5000, 13000, 2**31 - 1)) for _ in range(2)]
                chunks[0][1] = struct.pack(
                    '>2I5B', *sides, random.choice((1, 2, 4, 8, 8, 16)), random.choice((0, 0, 2, 3, 4, 6)), 0, 0,
                    random.choice((0, 1)),
                )  # fmt: skip
            case 'pixels':
                rows = random.randbytes(SIZE * (SIZE + 1)) if random.random() < 0.5 else bytes(1 << 20)
                chunk[:] = b'IDAT', zlib.compress(rows)
            case 'remove':
                chunks = [other for other in chunks if other is not chunk] or chunks
            case 'double':
                chunks.insert(random.randrange(len(chunks)), chunk)
            case 'bytes':
                chunk[1] = mutate_bytes(chunk[1], random)
            case 'add':
                kind = random.choice((b'PLTE', b'tRNS', b'iCCP', b'zTXt', b'eXIf', b'acTL', b'fcTL'))
                chunks.insert(1, [kind, random.randbytes(random.choice((0, 3, 26, 768)))])
    written = content[:8]
    for name, data in chunks:
        written += struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return written


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """Mutate the header of a safetensors file, which is JSON, and write its length again."""
    (length,) = struct.unpack('<Q', content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(random.choice((1, 2))):
        header = mutate_tree(header, random, odd_value)
    written = json.dumps(header).encode()
    size = len(written) if random.random() < 0.9 else integer(random) % (1 << 64)
    return struct.pack('<Q', size) + written + content[8 + length :]


def mutate(kind: str, content: bytes, random: Random) -> bytes:
    """Return a mutation of a valid file."""
    form, _, detail = kind.partition('-')
    if random.random() < 0.15:
        return mutate_bytes(content, random)
    if form == 'zip':
        inside = detail != 'hostile' and random.random() < 0.6
        return mutate_checkpoint(detail, True, random) if inside else mutate_archive(content, random)
    if form == 'legacy':
        inside = detail != 'hostile' and random.random() < 0.5
        return mutate_checkpoint(detail, False, random) if inside else mutate_pickle(content, random)
    others = {'pickle': mutate_pickle, 'safetensors': mutate_safetensors, 'coco': mutate_coco, 'mask': mutate_png}
    return others[form](content, random)
