"""The one form into which every layout is read."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmplugin.data.splits import map_in_threads
from mmplugin.errors import UserError
from mmplugin.image_files import UNREADABLE, open_image
from mmplugin.text import some

EXIF_ORIENTATION, FIRST_ROTATED = 274, 5  # orientations from 5 swap width and height
SHOWN = 5  # invalid files that a message lists


@dataclass(slots=True)
class Object:
    """One annotated object.

    Args:
        label: Class name.
        box: x, y, width and height in pixels.
        segmentation: Outlines, each as x1, y1, x2, y2, ..., or run lengths as in COCO; None if there is only a box.
        ignored: Whether the object is neither trained on nor counted as a miss, as VOC's difficult objects and COCO's
            crowds.
    """

    label: str
    box: tuple[float, float, float, float]
    segmentation: list[list[float]] | dict | None = None
    ignored: bool = False

    @property
    def area(self) -> float:
        """Area of the outlines, or of the box."""
        if isinstance(self.segmentation, list) and self.segmentation:
            return sum(map(polygon_area, self.segmentation))
        return self.box[2] * self.box[3]


@dataclass(slots=True)
class Record:
    """One image and its objects.

    Args:
        image: Path below the data root.
        width: In pixels, as OpenCV reads the image.
        height: In pixels.
        objects: All annotated objects.
        split: ``train``, ``val``, ``test``, or empty if the data does not say.
    """

    image: str
    width: int
    height: int
    objects: list[Object] = field(default_factory=list)
    split: str = ''


@dataclass
class Reading:
    """What was read from a folder.

    Args:
        records: All annotated images.
        classes: Class names in the order of their labels.
        warnings: What was found and not used.
    """

    records: list[Record]
    classes: list[str]
    warnings: list[str] = field(default_factory=list)


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area that an outline encloses."""
    x, y = polygon[::2], polygon[1::2]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def box_around(polygons: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the box around outlines."""
    values = [list(polygon) for polygon in polygons]
    x = [value for polygon in values for value in polygon[::2]]
    y = [value for polygon in values for value in polygon[1::2]]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def finite(value: Any) -> float:
    """Return a number from a file as float; a ``ValueError`` says that it is not a finite number."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f'{value} is not a finite number')
    return number


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height as training sees the image, i.e. after the rotation that its EXIF data ask for."""
    try:
        with open_image(path) as image:
            width, height = image.size
            rotated = image.getexif().get(EXIF_ORIENTATION, 1) >= FIRST_ROTATED
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is not a readable image ({error}); replace or remove it') from error
    return (height, width) if rotated else (width, height)


def read_each(read: Callable[[Any], Any], items: Sequence, what: str) -> list:
    """Apply ``read`` to all items. One ``UserError`` names the first few that failed, instead of only the first."""

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except UserError as error:
            return error

    results = list(map_in_threads(attempt, list(items), what))
    errors = [result for result in results if isinstance(result, UserError)]
    if errors:
        more = f'\n... and {len(errors) - SHOWN} more' if len(errors) > SHOWN else ''
        raise UserError('\n'.join(map(str, errors[:SHOWN])) + more)
    return results


def require_one_spelling(counts: dict[str, int]) -> None:
    """Raise a ``UserError`` if two class names differ only in case or in spaces around them.

    Args:
        counts: Number of objects by class name; 0 if it is not known.
    """
    spellings: dict[str, list[str]] = {}
    for name in counts:
        spellings.setdefault(' '.join(str(name).split()).casefold(), []).append(name)
    double = [names for names in spellings.values() if len(names) > 1]
    if double:
        listed = '; '.join(' and '.join(_with_count(name, counts[name]) for name in names) for names in double)
        raise UserError(f'class names in two spellings: {listed}. Use one spelling in the annotation files')


def _with_count(name: str, count: int) -> str:
    return f'{name!r} ({count} objects)' if count else repr(name)


def require_images(missing: Sequence[str], expected: str) -> None:
    """Raise a ``UserError`` if annotation files have no image."""
    if missing:
        raise UserError(
            f'annotation files without an image ({len(missing)}): {some(missing)}. {expected}. Add the images, or '
            'remove the annotation files'
        )
