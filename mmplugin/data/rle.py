"""Checks of masks in COCO's forms, without drawing them: pycocotools crashes on some, or takes all memory."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST_COORDINATE = 1e6
FARTHEST = 10  # times the longer side of the image: pycocotools takes memory for every pixel of an outline


def polygon_problem(polygons: Sequence[Any], size: tuple | None) -> str:
    """Return what is wrong with a list of polygons, else an empty string."""
    known = size is not None and all(type(side) in (int, float) for side in size)
    limit = FARTHEST * max(size) if size and known else math.inf
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return 'polygons with fewer than three points'
        try:  # three passes in C: a file may have a million polygons
            total, low, high = sum(polygon), min(polygon), max(polygon)
        except TypeError:
            return 'polygons with coordinates that are not numbers'
        if total != total or math.inf in (high, -low):
            return 'polygons with NaN or infinite coordinates'
        if low < -limit or high > limit or max(-low, high) > LARGEST_COORDINATE:
            return 'polygons far outside the image'
    return ''


def rle_problem(mask: dict, size: tuple | None) -> str:
    """Return what is wrong with a run-length encoded mask, else an empty string."""
    counts, shape = mask.get('counts'), mask.get('size')
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape):
        return 'RLE masks without a size [height, width]'
    if size is not None and tuple(shape) != tuple(size[::-1]):
        return 'RLE masks of another size than the image'
    if isinstance(counts, list):
        runs = counts if all(type(run) is int for run in counts) else None
    else:
        runs = _decode(counts) if isinstance(counts, str | bytes) else None
    if runs is None:
        return 'RLE masks with counts that cannot be decoded'
    if min(runs, default=0) < 0 or sum(runs) != shape[0] * shape[1]:
        return 'RLE masks with counts that do not sum to height * width'
    return ''


def _decode(text: str | bytes) -> list[int] | None:
    """Return the runs of COCO's compressed counts: 5 bits per character, and differences from the third run on."""
    data = text.encode('ascii', 'replace') if isinstance(text, str) else text
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        return None
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more pixels than any image
        return None
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) != 0
    values = np.where(negative, values - (1 << (5 * lengths)), values)
    runs = values.copy()
    for first in (1, 2):  # each run from the fourth on (index 3) is a difference to the one two before it
        runs[first::2] = np.cumsum(values[first::2])
    return runs.tolist()
