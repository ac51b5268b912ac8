"""LabelMe: one JSON file per image with polygons, rectangles and circles."""

import math
import posixpath
from collections import Counter
from typing import Any

from mmplugin.data.json_text import parse_json
from mmplugin.data.layouts.partition import split_of_folder
from mmplugin.data.layouts.records import (
    Object,
    Reading,
    Record,
    box_around,
    finite,
    image_size,
    read_each,
    require_images,
)
from mmplugin.data.layouts.tree import IMAGE_SUFFIXES, Tree, parent
from mmplugin.data.splits import sample
from mmplugin.errors import UserError
from mmplugin.text import some

CIRCLE_CORNERS = 64
LARGEST_FILE = 100_000_000  # bytes; the image may be inside


def find(tree: Tree) -> list[str]:
    """Return the JSON files; empty if none of a few that are opened has this layout."""
    files = tree.select('.json')
    return files if any(_is_labelme(tree, name) for name in sample(files)) else []


def _is_labelme(tree: Tree, name: str) -> bool:
    try:
        if (tree.root / name).stat().st_size > LARGEST_FILE:
            return False
        text = tree.text(name)
        return '"shapes"' in text and '"imagePath"' in text
    except (OSError, UserError):
        return False


def _content(tree: Tree, name: str) -> dict | None:
    """Return the content of a file of this layout, None for other JSON files."""
    try:
        content = parse_json(tree.text(name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{tree.root / name} is not valid JSON ({error}); correct or remove it') from error
    shaped = isinstance(content, dict) and isinstance(content.get('shapes'), list)
    return content if shaped and isinstance(content.get('imagePath'), str) else None


def read(tree: Tree, classes: list[str] | None = None) -> Reading:
    """Read all annotated images. The classes are in alphabetical order."""
    images = set(tree.images)
    missing: list[str] = []
    others: list[str] = []
    skipped: Counter[str] = Counter()

    def record(name: str) -> Record | None:
        content = _content(tree, name)
        if content is None:
            others.append(name)
            return None
        image = _image(name, content['imagePath'], images)
        if image is None:
            missing.append(name)
            return None
        width, height = image_size(tree.root / image)
        try:
            objects = _objects(content['shapes'], skipped)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f'{tree.root / name}: a shape is invalid ({error!r}); correct it in LabelMe') from error
        return Record(image, width, height, objects, split_of_folder(image) or split_of_folder(name))

    records = [found for found in read_each(record, find(tree), 'annotations') if found]
    require_images(sorted(missing), 'imagePath names the image, relative to the JSON file')
    warnings = []
    unused = sorted(images - {found.image for found in records})
    if unused:
        warnings.append(f'images without an annotation file, which are not used ({len(unused)}): {some(unused)}')
    if others:
        warnings.append(f'JSON files in another layout, which are not used: {some(sorted(others))}')
    if skipped:
        kinds = some(f'{count} {kind}' for kind, count in skipped.items())
        warnings.append(f'shapes that are not rectangles, polygons or circles, which are skipped: {kinds}')
    return Reading(records, sorted({found.label for item in records for found in item.objects}), warnings)


def _image(name: str, stated: str, images: set[str]) -> str | None:
    """Return the image that a file names, else the one with the file's own name."""
    below = posixpath.normpath(posixpath.join(parent(name), stated.replace('\\', '/')))
    same_name = [name[: -len('.json')] + suffix for suffix in IMAGE_SUFFIXES]
    next_to_it = posixpath.join(parent(name), posixpath.basename(below))
    return next((path for path in (below, next_to_it, *same_name) if path in images), None)


def _objects(shapes: list[dict[str, Any]], skipped: Counter[str]) -> list[Object]:
    """Return the objects; polygons with the same name and ``group_id`` are parts of one object."""
    objects: list[Object] = []
    groups: dict[tuple, list[list[float]]] = {}
    for shape in shapes:
        label, kind = str(shape['label']).strip(), str(shape.get('shape_type') or 'polygon')
        points = [(finite(x), finite(y)) for x, y in shape['points']]
        flat = [value for point in points for value in point]
        if kind == 'rectangle' and len(points) in (2, 4):
            objects.append(Object(label, box_around([flat])))
        elif kind == 'circle' and len(points) == 2:
            outline = _circle(*points)
            objects.append(Object(label, box_around([outline]), [outline]))
        elif kind == 'polygon' and len(points) >= 3:
            group = shape.get('group_id')
            groups.setdefault((label, len(groups) if group is None else f'group {group}'), []).append(flat)
        else:
            skipped[kind] += 1
    return objects + [Object(label, box_around(parts), parts) for (label, _), parts in groups.items()]


def _circle(center: tuple[float, float], edge: tuple[float, float]) -> list[float]:
    radius = math.dist(center, edge)
    angles = (2 * math.pi * i / CIRCLE_CORNERS for i in range(CIRCLE_CORNERS))
    return [
        value
        for angle in angles
        for value in (center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle))
    ]
