"""Mutations of the text files and masks of data layouts."""

import json
import re
from random import Random

from .mutations import NUMBERS, TEXTS, integer, mutate_bytes, mutate_png, mutate_tree, odd_annotation, odd_value

WORDS = re.compile(rb'[A-Za-z_]\w*|-?\d+(?:\.\d+)?|\s+|[^\w\s]')
ENTITIES = b'<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
# Each name stands for the one before it ten times.
ALIASES = b'a0: &a0 [x, x]\n' + b''.join(
    b'a%d: &a%d [%s]\n' % (i, i, b', '.join([b'*a%d' % (i - 1)] * 10)) for i in range(1, 10)
)
ODD = {
    'voc': (
        b'&c;', b'&#0;', b'&lt;', b'&#x1b;', b'<![CDATA[', b'<?xml version="1.0" encoding="utf-16"?>', b'<!--',
        b'<object>' * 20_000, b'<name>', b'</object>', b'xmlns="x"', b'<bndbox/>', ENTITIES,
    ),
    'yaml': (
        b'names: *a9\n', ALIASES + b'names: *a9\n', b'names: {0: *a9, 1: *a8}\n' + ALIASES, b'&x [*x]', b'{*x: 1}',
        b'!!python/object/apply:os.mkdir [canary]', b'? [a, b]\n: c\n', b'!!binary aGk=', b'2001-01-01', b'<<: *a0',
        b'!!set {a}', b'0o777', b'1_000', b'0x10', b'12:30:45', b'~', b'[' * 5000, b'- ' * 3000, b'%YAML 9.9\n---\n',
        b'../../etc', b'/', b'..', b'val: [null, 7, {}]\n', b'train: data.yaml\n', b'train: ' + b'a' * 5000 + b'\n',
    ),
    'yolo': (b'1e308', b'-0', b'1_0', b'0x1', b'nan', b'infinity', '\u0661'.encode(), b' 0.1 0.2' * 5000, b'1e-320'),
    'table': (b'256', b'#', b':', b',', b'"', b'\r', b'\x00', '\u00b2'.encode(), b'9' * 5000, b'"a\n'),
    'list': (b'../../0', b'0.png', b'/', b'\x00', b'0 0 0', b'a' * 5000),
}  # fmt: skip


def mutate_words(content: bytes, odd: tuple[bytes, ...], random: Random) -> bytes:
    """Remove, repeat, swap or replace words, numbers and signs."""
    words = WORDS.findall(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        place, other = random.randrange(len(words)), random.randrange(len(words))
        values = (
            random.choice(odd),
            random.choice(odd),
            random.choice(TEXTS).encode('utf-8', 'surrogatepass'),
            str(random.choice(NUMBERS)).encode(),
            str(integer(random)).encode(),
        )
        match random.choice(('replace', 'replace', 'replace', 'remove', 'repeat', 'swap', 'many', 'front', 'lines')):
            case 'replace':
                words[place] = random.choice(values)
            case 'remove' if len(words) > 1:
                del words[place]
            case 'repeat':
                words[place:place] = words[place : place + random.choice((1, 5, 30))]
            case 'swap':
                words[place], words[other] = words[other], words[place]
            case 'many':
                words[place] *= random.choice((2, 1000))
            case 'front':
                words.insert(0, random.choice(values))
            case 'lines':
                words = [word.replace(b'\n', random.choice((b'\r', b'\x0b', b' ', b'\n\n'))) for word in words]
    return b''.join(words)


def mutate_json(content: bytes, random: Random, annotations: bool) -> bytes:
    """Mutate values, or repeat a key."""
    tree = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        tree = mutate_tree(tree, random, odd_annotation if annotations else odd_value)
    written = json.dumps(tree)
    if random.random() < 0.05:
        key = random.choice(re.findall('"[^"]*": ', written) or ['{'])
        written = written.replace(key, f'{key}{random.choice((0, "[]", "NaN"))}, {key}', 1)
    if random.random() < 0.02:
        written = written.replace('40', '[' * 200_000 + ']' * 200_000, 1)
    return written.encode()


def mutate_layout(kind: str, content: bytes, random: Random) -> bytes:
    """Return a mutation of the file of a layout."""
    detail = kind.removeprefix('layout-')
    if random.random() < 0.15:
        return random.choice((b'', b'\xef\xbb\xbf', b'\xff\xfe')) + mutate_bytes(content, random)
    if detail == 'mask':
        return mutate_png(content, random)
    if detail in ('coco', 'split', 'labelme', 'jsontable'):
        return mutate_json(content, random, detail in ('coco', 'split'))
    return mutate_words(content, ODD[detail], random)
