"""Colors, textures and landscapes of the built-in sets. Images are float32 RGB in [0, 255]."""

import colorsys

import cv2
import numpy as np

BACKGROUND_NAMES = ('sky', 'ground', 'water', 'sand')


def color(rng: np.random.Generator, hue=(0, 1), saturation=(0.1, 0.9), value=(0.25, 0.95)) -> np.ndarray:
    """Return a random RGB color; the ranges are of hue, saturation and value in HSV."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    return 255 * np.array(rgb, dtype=np.float32)


def soft_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Return smooth noise in about [-1, 1] with spots of ``cell`` (height, width) pixels."""
    grid = [max(2, round(side / size)) for side, size in zip(shape, cell, strict=True)]
    spots = rng.uniform(-1, 1, grid).astype(np.float32)
    return cv2.resize(spots, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def surface(rng: np.random.Generator, shape: tuple[int, int], base: np.ndarray, plain: float = 1 / 6) -> np.ndarray:
    """Return one of five textures in ``base`` and a second color, or with probability ``plain`` none; (H, W, 3)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    kind = 0 if rng.random() < plain else int(rng.integers(1, 6))
    blend: np.ndarray
    if kind == 0:
        blend = np.zeros(shape, dtype=np.float32)
    elif kind == 1:
        blend = (np.sin(along * (2 * np.pi / pitch)) > 0).astype(np.float32)
    elif kind == 2:
        blend = (np.sin(along * (np.pi / pitch)) * np.sin(across * (np.pi / pitch)) > 0).astype(np.float32)
    elif kind == 3:
        blend = (np.sin(along * (2 * np.pi / pitch)) + np.sin(across * (2 * np.pi / pitch)) > 1).astype(np.float32)
    elif kind == 4:
        blend = 0.5 + 0.5 * soft_noise(rng, shape, (pitch, pitch))
    else:
        blend = rng.uniform(0, 1, shape).astype(np.float32)
    other = np.clip(base + rng.uniform(-90, 90, 3).astype(np.float32), 0, 255)
    return base + blend[..., None] * (other - base)


def backdrop(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw a wall: a texture with soft blotches, lit from one side."""
    image = surface(rng, shape, color(rng, saturation=(0.05, 0.6)))
    image += 30 * soft_noise(rng, shape, (48, 48))[..., None]
    left, right = rng.uniform(0.7, 1.2, 2)
    return image * np.linspace(left, right, shape[1], dtype=np.float32)[None, :, None]


def _sky(rng, shape):
    fade = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    top = color(rng, (0.5, 0.72), (0.1, 0.6), (0.45, 1))
    bottom = color(rng, (0.5, 1.15), (0.05, 0.4), (0.7, 1))
    clouds = np.clip(soft_noise(rng, shape, (14, 44)), 0.1, 1)[..., None] - 0.1
    return top + fade * (bottom - top) + clouds * (235 - top) * rng.uniform(0, 0.9)


def _ground(rng, shape):
    blades = soft_noise(rng, shape, (7, 1.5)) + 0.7 * soft_noise(rng, shape, (22, 22))
    return color(rng, (0.07, 0.42), (0.25, 0.75), (0.25, 0.65)) + 30 * blades[..., None]


def _water(rng, shape):
    waves = soft_noise(rng, shape, (2.5, 16)) + 0.5 * soft_noise(rng, shape, (8, 60))
    return color(rng, (0.42, 0.68), (0.25, 0.75), (0.3, 0.75)) + 26 * waves[..., None]


def _sand(rng, shape):
    grain = rng.uniform(-1, 1, shape).astype(np.float32) + 0.5 * soft_noise(rng, shape, (10, 30))
    return color(rng, (0.06, 0.17), (0.1, 0.5), (0.55, 0.95)) + 22 * grain[..., None]


def landscape(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky over one or two of ground, water and sand.

    Returns:
        The image (H, W, 3), and for every pixel its index into ``BACKGROUND_NAMES`` (H, W).
    """
    height, width = shape
    image, index = _sky(rng, shape), np.zeros(shape, dtype=np.uint8)
    below = rng.permutation([1, 2, 3])[: rng.integers(1, 3)]
    edge, y = rng.uniform(0.2, 0.5) * height, np.arange(height)[:, None]
    for kind in below:
        line = edge + rng.uniform(2, 10) * soft_noise(rng, (2, width), (1, rng.uniform(20, 60)))[0]
        region = y >= line[None]
        layer = (_sky, _ground, _water, _sand)[kind](rng, shape)
        image[region], index[region] = layer[region], kind
        edge += rng.uniform(0.2, 0.35) * height
    return image, index
