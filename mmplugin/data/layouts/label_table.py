"""Tables of class names with the color or the number that each has in the masks."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmplugin.data.json_text import parse_json
from mmplugin.data.layouts.tree import Tree, read_text
from mmplugin.errors import UserError

# What tools and data sets call such files.
FILE_NAMES = ('label_colors.txt', 'class_dict.csv', 'labelmap.txt', 'color_table.txt', 'color_table.csv')


@dataclass(frozen=True)
class LabelTable:
    """Class names by value.

    Args:
        path: The file.
        values: Class name by value: a number, or a color as 65536 r + 256 g + b.
        colors: Whether the values are colors.
    """

    path: Path
    values: dict[int, str]
    colors: bool


def pack(color: tuple[int, int, int] | list[int]) -> int:
    """Return a color as one number."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def find_table(tree: Tree) -> Path | None:
    """Return the table in a folder, if there is exactly one."""
    found = [tree.root / name for name in tree.files if name.rpartition('/')[2].lower() in FILE_NAMES]
    return found[0] if len(found) == 1 else None


def read_table(path: Path) -> LabelTable:
    """Read a table.

    Lines are ``name r g b``, ``r g b name``, ``name number`` or ``number name``, with spaces, tabs, commas or colons
    between them; lines without a number (a heading) and lines after ``#`` are skipped. JSON is an object of names with
    a color or number, or a list of objects with ``name`` and ``color`` or ``id``.
    """
    text = read_text(path)
    try:
        rows = _json_rows(parse_json(text)) if path.suffix.lower() == '.json' else _text_rows(text)
        if any(len(row[1]) not in (1, 3) for row in rows):
            raise ValueError('expected one or three numbers for each name')
        values = [(pack(row[1]) if len(row[1]) == 3 else row[1][0], row[0]) for row in rows]
        kinds = {len(row[1]) for row in rows}
        if len(kinds) != 1:
            raise ValueError('some rows have a color, others a number' if kinds else 'no row has a name and a number')
        if any(not 0 <= part <= (255 if 3 in kinds else 65535) for row in rows for part in row[1]):
            raise ValueError('a color or number is out of range')
        if len({value for value, _ in values}) < len(values):
            raise ValueError('a color or number occurs twice')
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is not a table of class names and colors or numbers: {error}') from error
    return LabelTable(path, dict(values), kinds == {3})


def _text_rows(text: str) -> list[tuple[str, list[int]]]:
    rows = []
    for line in text.splitlines():
        line = line.partition('#')[0].strip()
        words = [word.strip() for word in (next(csv.reader([line])) if ',' in line else re.split(r'[\t ]+', line))]
        if ':' in line:  # CVAT's labelmap.txt: name:r,g,b:parts:actions
            words = [word.strip() for part in line.split(':')[:2] for word in part.split(',')]
        numbers = [int(word) for word in words if re.fullmatch(r'\d+', word)]
        name = ' '.join(word for word in words if word and not re.fullmatch(r'\d+', word))
        if name and len(numbers) in (1, 3):
            rows.append((name, numbers))
        elif numbers:
            raise ValueError(f'expected a name and one or three numbers, not {line!r}')
    return rows


def _json_rows(content: Any) -> list[tuple[str, list[int]]]:
    if isinstance(content, dict):
        items = list(content.items())
    else:
        items = [(row['name'], row['color'] if 'color' in row else row['id']) for row in content]
    return [
        (str(name), [int(part) for part in value] if isinstance(value, list) else [int(value)]) for name, value in items
    ]
