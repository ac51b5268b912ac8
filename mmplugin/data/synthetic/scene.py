"""Scenes: objects that occlude each other on a textured background, with the exact visible mask of each."""

from dataclasses import dataclass

import cv2
import numpy as np

from .shapes import BODY, DARK, DISTRACTOR, OBJECTS, TRIM, Outline, Part
from .textures import BACKGROUND_NAMES, backdrop, color, landscape, surface

OBJECT_NAMES = tuple(OBJECTS)

# (height, width): varied aspect ratios, sides that need no resizing on two CPU cores
IMAGE_SIZES = ((192, 192), (160, 224), (224, 160), (176, 208), (208, 176))
EXTENT = (40, 120)  # smallest and largest length of an object, in pixels
MIN_VISIBLE, MIN_PIXELS = 0.55, 100  # of every object: visible fraction, visible pixels
OVERSAMPLING = 4
NO_CLASS = 255


@dataclass
class Scene:
    """An image with its instance and semantic labels."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    masks: list[np.ndarray]  # (H, W) bool per object, its visible pixels
    labels: list[int]  # per object, index into OBJECT_NAMES
    semantic: np.ndarray  # (H, W) uint8, index into BACKGROUND_NAMES + OBJECT_NAMES, or NO_CLASS


@dataclass
class _Sprite:
    """An object rasterized in its own window, which may extend beyond the image."""

    coverage: np.ndarray  # (h, w, 3) float32, per tone, in [0, 1]
    mask: np.ndarray  # (h, w) bool
    top: int
    left: int

    def clipped(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the slices of the part inside an image of ``shape``: in the image and in the window."""
        ends = [(self.top, self.mask.shape[0], shape[0]), (self.left, self.mask.shape[1], shape[1])]
        inside = [(max(0, start), min(limit, start + length)) for start, length, limit in ends]
        (top, bottom), (left, right) = [(a, max(a, b)) for a, b in inside]
        image = slice(top, bottom), slice(left, right)
        window = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return image, window


def _rasterize(parts: list[Part], center: np.ndarray, scale: np.ndarray, degrees: float) -> _Sprite:
    turn = np.deg2rad(degrees)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    placed = [(part.points * scale) @ rotate.T + center for part in parts]
    everything = np.concatenate(placed)
    left, top = np.floor(everything.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(everything.max(axis=0)).astype(int) + 1
    fine = np.zeros((OVERSAMPLING * (bottom - top), OVERSAMPLING * (right - left)), dtype=np.uint8)
    for points, part in zip(placed, parts, strict=True):
        corners = np.round((points - (left, top)) * OVERSAMPLING).astype(np.int32)
        cv2.fillPoly(fine, [corners], part.tone)
    size = (right - left, bottom - top)
    tones = [(fine == tone).astype(np.float32) for tone in (BODY, TRIM, DARK)]
    coverage = np.stack([cv2.resize(tone, size, interpolation=cv2.INTER_AREA) for tone in tones], axis=-1)
    return _Sprite(coverage, coverage.sum(axis=-1) >= 0.5, int(top), int(left))


def _draw_sprite(rng: np.random.Generator, outline: Outline, shape: tuple[int, int], extent: float) -> _Sprite:
    margin = 0.25 * extent
    center = np.array([rng.uniform(margin, shape[1] - margin), rng.uniform(margin, shape[0] - margin)])
    scale = 0.5 * extent * np.array([rng.choice([-1.0, 1.0]), rng.uniform(0.82, 1.18)])
    return _rasterize(outline.draw(rng), center, scale, rng.uniform(-outline.tilt, outline.tilt))


def _paint(rng: np.random.Generator, image: np.ndarray, sprite: _Sprite) -> None:
    """Color a sprite so that it stands out from what it covers, and paint it into the image."""
    where, window = sprite.clipped(image.shape[:2])
    height, width = sprite.mask.shape
    behind = image[where][sprite.mask[window]].mean(axis=0)
    base = color(rng)
    for _ in range(8):
        if np.linalg.norm(base - behind) > 55:
            break
        base = color(rng)
    body = surface(rng, (height, width), base, plain=0.7)
    trim = color(rng) if rng.random() < 0.5 else np.clip(base * rng.uniform(0.6, 1.4), 0, 255)
    dark = base * rng.uniform(0.1, 0.45) if rng.random() < 0.7 else color(rng)
    paint = sprite.coverage[..., :1] * body + sprite.coverage[..., 1:2] * trim + sprite.coverage[..., 2:] * dark
    (top, bottom), (left, right) = rng.uniform(0.65, 1.2, 2), rng.uniform(0.8, 1.15, 2)
    light = np.linspace(top, bottom, height, dtype=np.float32)[:, None, None]
    light = light * np.linspace(left, right, width, dtype=np.float32)[None, :, None]
    alpha = sprite.coverage.sum(axis=-1, keepdims=True)
    image[where] = ((1 - alpha[window]) * image[where]) + (paint * light)[window]


def draw_scene(rng: np.random.Generator, only_landscapes: bool = False) -> Scene:
    """Draw a scene of two to five objects and up to two distractors, from back to front.

    Of every object at least ``MIN_VISIBLE`` of its area and ``MIN_PIXELS`` pixels remain visible, so that every object
    in the image has an annotation.

    Args:
        rng: The only source of randomness.
        only_landscapes: Draw only backgrounds of sky, ground, water and sand; otherwise half are textured walls.
    """
    shape = IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))]
    if only_landscapes or rng.random() < 0.5:
        image, semantic = landscape(rng, shape)
    else:
        image, semantic = backdrop(rng, shape), np.full(shape, NO_CLASS, dtype=np.uint8)
    labels = list(rng.integers(len(OBJECTS), size=rng.integers(2, 6))) + [None] * int(rng.integers(3))
    owner = np.full(shape, -1, dtype=np.int16)
    placed: list[int | None] = []
    whole: list[int] = []  # pixels of each object, including occluded ones and those outside the image
    for label in rng.permutation(np.array(labels, dtype=object)):
        outline = DISTRACTOR if label is None else OBJECTS[OBJECT_NAMES[label]]
        extent = np.exp(rng.uniform(*np.log(EXTENT)))
        for _ in range(6):
            sprite = _draw_sprite(rng, outline, shape, extent)
            where, window = sprite.clipped(shape)
            trial = owner.copy()
            trial[where][sprite.mask[window]] = len(placed)
            visible = np.bincount(trial[trial >= 0], minlength=len(placed) + 1)
            needed = np.maximum(MIN_PIXELS, MIN_VISIBLE * np.array([*whole, sprite.mask.sum()]))
            if (visible >= needed).all():
                _paint(rng, image, sprite)
                owner = trial
                placed.append(label)
                whole.append(int(sprite.mask.sum()))
                break
    for index, label in enumerate(placed):
        semantic[owner == index] = NO_CLASS if label is None else len(BACKGROUND_NAMES) + label
    objects = {index: label for index, label in enumerate(placed) if label is not None}
    image += rng.normal(0, rng.uniform(2, 7), (*shape, 1)).astype(np.float32)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return Scene(pixels, [owner == index for index in objects], [int(label) for label in objects.values()], semantic)


def draw_crop(rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, int]:
    """Draw one object that fills a (size, size, 3) image; return the image and the label."""
    image = backdrop(rng, (size, size)) if rng.random() < 0.5 else landscape(rng, (size, size))[0]
    label = int(rng.integers(len(OBJECTS)))
    outline = OBJECTS[OBJECT_NAMES[label]]
    extent = rng.uniform(0.6, 1.0) * size
    scale = 0.5 * extent * np.array([rng.choice([-1.0, 1.0]), rng.uniform(0.82, 1.18)])
    center = size / 2 + rng.uniform(-0.12, 0.12, 2) * size
    _paint(rng, image, _rasterize(outline.draw(rng), center, scale, rng.uniform(-outline.tilt, outline.tilt)))
    image += rng.normal(0, rng.uniform(2, 7), (size, size, 1)).astype(np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), label
