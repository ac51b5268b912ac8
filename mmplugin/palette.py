"""Colors for classes."""

import colorsys

GOLDEN_RATIO = 0.618  # steps of the hue that keep neighbors far apart, however many classes there are


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return distinct RGB colors, one per class. The same count gives the same colors."""
    hues = (colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1, 0.55 + 0.4 * (i % 2), 0.95) for i in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in hues]
