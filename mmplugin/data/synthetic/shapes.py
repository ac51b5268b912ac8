"""Outlines of the objects in the built-in sets; every call draws another variant.

Coordinates are about [-1, 1], y down. An object is a list of parts, painted in order; its silhouette is their union
minus the holes. Outlines only; color and texture must not correlate with the class.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BODY, TRIM, DARK, HOLE = 1, 2, 3, 0


class Part(NamedTuple):
    """A polygon and the tone it is filled with."""

    points: np.ndarray  # (N, 2) x, y
    tone: int  # BODY, TRIM, DARK or HOLE


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _ellipse(x: float, y: float, rx: float, ry: float, corners: int = 28) -> np.ndarray:
    turn = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def fish(rng: np.random.Generator) -> list[Part]:
    """Draw a fish: body, tail, one or two fins and an eye."""
    height, tail, fork = rng.uniform(0.32, 0.55), rng.uniform(0.32, 0.5), rng.uniform(0.0, 0.25)
    parts = [
        Part(_polygon((0.35, 0), (1.0, -tail), (1.0 - fork, 0), (1.0, tail)), TRIM),
        Part(_polygon((-0.35, -0.6 * height), (0.1, -height - rng.uniform(0.12, 0.3)), (0.3, -0.5 * height)), TRIM),
        Part(_ellipse(-0.25, 0, 0.75, height), BODY),
        Part(_ellipse(-0.68, -0.25 * height, 0.08, 0.08, 12), DARK),
    ]
    if rng.random() < 0.5:
        parts.insert(2, Part(_polygon((-0.2, 0.6 * height), (0.15, height + 0.2), (0.2, 0.5 * height)), TRIM))
    return parts


def tree(rng: np.random.Generator) -> list[Part]:
    """Draw a conifer or a broadleaf tree."""
    trunk = rng.uniform(0.08, 0.16)
    parts = [Part(_polygon((-trunk, 1), (-0.7 * trunk, 0), (0.7 * trunk, 0), (trunk, 1)), DARK)]
    if rng.random() < 0.5:
        tiers, width = int(rng.integers(2, 5)), rng.uniform(0.45, 0.7)
        for tier in range(tiers):
            bottom = 0.6 - 1.2 * tier / tiers
            half, top = width * (1 - 0.7 * tier / tiers), max(-1.0, bottom - 1.9 / tiers)
            parts.append(Part(_polygon((-half, bottom), (0, top), (half, bottom)), BODY))
        return parts
    for x, y in ((-0.35, -0.15), (0.35, -0.15), (0, -0.55), (0, -0.1)):
        x, y = x + rng.uniform(-0.1, 0.1), y + rng.uniform(-0.1, 0.1)
        parts.append(Part(_ellipse(x, y, rng.uniform(0.3, 0.45), rng.uniform(0.28, 0.42), 16), BODY))
    return parts


def house(rng: np.random.Generator) -> list[Part]:
    """Draw a house with a gable or hip roof, a chimney, a door and a window."""
    half, eaves, ridge = rng.uniform(0.6, 0.9), rng.uniform(-0.25, 0.05), rng.choice([0.0, rng.uniform(0.25, 0.5)])
    floor, over = rng.uniform(0.65, 0.9), rng.uniform(0.02, 0.14)
    chimney, door = half * rng.uniform(0.35, 0.6), rng.uniform(-0.4, 0.15) * half
    return [
        Part(_rectangle(chimney, -0.9, chimney + 0.18, eaves), DARK),
        Part(_rectangle(-half, eaves, half, floor), BODY),
        Part(_polygon((-half - over, eaves), (-ridge, -0.95), (ridge, -0.95), (half + over, eaves)), TRIM),
        Part(_rectangle(door - 0.12, floor - 0.5, door + 0.12, floor), DARK),
        Part(_rectangle(0.4 * half, eaves + 0.18, 0.75 * half, eaves + 0.46), DARK),
    ]


def car(rng: np.random.Generator) -> list[Part]:
    """Draw a car from the side."""
    roof, deck, sill = rng.uniform(-0.6, -0.42), rng.uniform(-0.12, 0.02), rng.uniform(0.3, 0.4)
    front, rear, wheel = rng.uniform(0.2, 0.45), rng.uniform(0.35, 0.8), rng.uniform(0.17, 0.24)
    window = _polygon((0.1 - rear, deck - 0.04), (0.22 - rear, roof + 0.1), (-0.12, roof + 0.1), (-0.12, deck - 0.04))
    return [
        Part(_polygon((-rear - 0.1, deck), (-rear + 0.15, roof), (front - 0.1, roof), (front + 0.25, deck)), TRIM),
        Part(_polygon((-0.95, deck), (0.7, deck), (0.95, deck + 0.16), (1, sill), (-1, sill)), BODY),
        Part(window, DARK),
        Part(_ellipse(-0.55, sill, wheel, wheel, 18), DARK),
        Part(_ellipse(0.55, sill, wheel, wheel, 18), DARK),
    ]


def flower(rng: np.random.Generator) -> list[Part]:
    """Draw a flower with five to eight petals, often with a leaf."""
    petals, length, heart = int(rng.integers(5, 9)), rng.uniform(0.24, 0.3), rng.uniform(0.17, 0.24)
    width, y = length * rng.uniform(0.45, 0.7), -0.4
    parts = [Part(_rectangle(-0.05, y, 0.05, 1), DARK)]
    if rng.random() < 0.7:
        parts.append(Part(_polygon((0, 0.75), (0.3, 0.35), (0.4, 0.6)), DARK))
    for turn in np.arange(petals) * (2 * np.pi / petals) + rng.uniform(0, 1):
        along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        local = _ellipse(length + 0.06, 0, length, width, 14)
        parts.append(Part(local[:, :1] * along + local[:, 1:] * across + (0, y), BODY))
    return [*parts, Part(_ellipse(0, y, heart, heart, 14), TRIM)]


def mug(rng: np.random.Generator) -> list[Part]:
    """Draw a mug with a handle."""
    top, bottom, reach = rng.uniform(0.5, 0.68), rng.uniform(0.42, 0.62), rng.uniform(0.28, 0.42)
    thickness, left = rng.uniform(0.1, 0.15), -0.22
    return [
        Part(_ellipse(left + top - 0.05, 0.0, reach + thickness, 0.34 + thickness, 20), BODY),
        Part(_ellipse(left + top - 0.05, 0.0, reach, 0.34, 20), HOLE),
        Part(_ellipse(left, 0.72, bottom, 0.14, 20), BODY),
        Part(_polygon((left - top, -0.7), (left + top, -0.7), (left + bottom, 0.72), (left - bottom, 0.72)), BODY),
        Part(_ellipse(left, -0.7, top, 0.17, 24), TRIM),
        Part(_ellipse(left, -0.7, 0.82 * top, 0.11, 24), DARK),
    ]


def distractor(rng: np.random.Generator) -> list[Part]:
    """Draw a shape of no class from the same primitives, so that detecting any shape is not enough."""
    kind = int(rng.integers(6))
    if kind == 0:
        return [Part(_ellipse(0, 0, 1, rng.uniform(0.4, 1)), BODY)]
    if kind == 1:
        return [Part(_rectangle(-1, -(side := rng.uniform(0.3, 1)), 1, side), BODY)]
    if kind == 2:
        return [Part(_polygon((-0.9, 0.7), (rng.uniform(-0.5, 0.5), -0.9), (0.9, 0.7)), BODY)]
    if kind == 3:
        return [Part(_ellipse(0, 0, 1, 1), BODY), Part(_ellipse(0, 0, hole := rng.uniform(0.4, 0.7), hole), HOLE)]
    if kind == 4:
        arm = rng.uniform(0.18, 0.35)
        return [Part(_rectangle(-1, -arm, 1, arm), BODY), Part(_rectangle(-arm, -1, arm, 1), TRIM)]
    turn, radius = np.sort(rng.uniform(0, 2 * np.pi, 9)), rng.uniform(0.75, 1, 9)
    return [Part(np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1), BODY)]


class Outline(NamedTuple):
    """How to draw one class of objects."""

    draw: Callable[[np.random.Generator], list[Part]]
    tilt: float  # largest rotation in degrees, to either side


OBJECTS = {
    'fish': Outline(fish, 25),
    'tree': Outline(tree, 15),
    'house': Outline(house, 12),
    'car': Outline(car, 20),
    'flower': Outline(flower, 25),
    'mug': Outline(mug, 30),
}
DISTRACTOR = Outline(distractor, 180)
