"""The result of a model for one image: arrays, and a drawing."""

import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmplugin.palette import palette

MASK_SHARE = 0.45  # of the color of a mask over the image
SMALLEST_NAMED = 0.004  # share of the image that a region needs to be named
IGNORED = 255  # in class maps: pixels of classes that were filtered out
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
OptionalArray = Any  # an array or None, depending on the model


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The objects or the class map that a model found in one image.

    Args:
        image: The image, with channels in the order blue, green, red, as OpenCV and mmcv read it.
        classes: Names of all classes of the model.
        path: File of the image, if it came from a file.
        boxes: ``(n, 4)``, ``x1 y1 x2 y2`` in pixels of the image, highest score first; None for segmentation.
        scores: ``(n,)``, from 0 to 1.
        labels: ``(n,)``, indices into ``classes``.
        masks: ``(n, height, width)`` of bool, if the model predicts masks.
        class_map: ``(height, width)``, an index into ``classes`` for each pixel; None for detection.
    """

    image: np.ndarray
    classes: tuple[str, ...]
    path: str | None = None
    boxes: OptionalArray = None
    scores: OptionalArray = None
    labels: OptionalArray = None
    masks: OptionalArray = None
    class_map: OptionalArray = None

    @property
    def names(self) -> list[str]:
        """Class name of each object; for segmentation, of each class in the map."""
        found = np.unique(self.class_map) if self.labels is None else self.labels
        return [self.classes[label] for label in found.tolist() if label < len(self.classes)]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        found = ', '.join(f'{count} {name}' for name, count in Counter(self.names).items())
        if self.class_map is not None:
            found = ', '.join(self.names)
        height, width = self.size
        return f'<Prediction {self.path or "array"} {width}x{height}: {found or "nothing"}>'

    def select(self, score: float = 0.0, labels: Collection[int] | None = None) -> 'Prediction':
        """Return the objects with at least a score and one of some labels; other pixels of a class map become 255."""
        if self.class_map is not None:
            if labels is None:
                return self
            ignored = np.array(IGNORED if len(self.classes) <= IGNORED else np.iinfo(np.uint16).max)
            return replace(self, class_map=np.where(np.isin(self.class_map, list(labels)), self.class_map, ignored))
        chosen = self.scores >= score
        if labels is not None:
            chosen &= np.isin(self.labels, list(labels))
        parts = ('boxes', 'scores', 'labels', 'masks')
        return replace(self, **{name: part[chosen] for name in parts if (part := getattr(self, name)) is not None})

    def draw(self) -> Image.Image:
        """Return the image with boxes, masks and class names, or with the class map."""
        pixels = np.ascontiguousarray(self.image[..., ::-1]).astype(np.uint8)
        colors = palette(len(self.classes))
        font = ImageFont.load_default(min(40, max(10, min(self.size) // 28)))
        if self.class_map is not None:
            return _draw_class_map(pixels, self, colors, font)
        return _draw_objects(pixels, self, colors, font)

    def _repr_png_(self) -> bytes:
        """Return the drawing as notebooks show it."""
        file = io.BytesIO()
        self.draw().save(file, 'PNG')
        return file.getvalue()


def _draw_objects(
    pixels: np.ndarray, prediction: Prediction, colors: list[tuple[int, int, int]], font: Any
) -> Image.Image:
    line = max(1, round(min(prediction.size) / 240))
    order = np.argsort(prediction.scores, kind='stable').tolist()  # the best ones are drawn last
    for i in order:
        color = colors[prediction.labels[i]]
        if prediction.masks is not None and prediction.masks[i].any():
            _blend_(pixels, prediction.masks[i], color)
            outlines, _ = cv2.findContours(
                prediction.masks[i].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            cv2.drawContours(pixels, outlines, -1, color, line)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for i in order:
        x1, y1, x2, y2 = np.rint(prediction.boxes[i]).astype(int).tolist()
        label = prediction.labels[i]
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colors[label], width=line)
        text = f'{prediction.classes[label]} {prediction.scores[i]:.2f}'
        above = y1 - font.size * 1.4
        _write(draw, (x1 + 3, above if above >= 0 else y1 + line + 1), text, colors[label], font)
    return image


def _draw_class_map(
    pixels: np.ndarray, prediction: Prediction, colors: list[tuple[int, int, int]], font: Any
) -> Image.Image:
    places = []
    for label in np.unique(prediction.class_map).tolist():
        if label < len(colors):
            inside = prediction.class_map == label
            _blend_(pixels, inside, colors[label])
            if inside.mean() >= SMALLEST_NAMED:
                # the pixel that is farthest from other classes
                depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
                places.append((label, divmod(int(depth.argmax()), depth.shape[1])))
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for label, (y, x) in places:
        name = prediction.classes[label]
        place = x - draw.textlength(name, font) / 2, y - font.size / 2
        _write(draw, place, name, colors[label], font)
    return image


def _blend_(pixels: np.ndarray, inside: np.ndarray, color: tuple[int, int, int]) -> None:
    pixels[inside] = (1 - MASK_SHARE) * pixels[inside] + MASK_SHARE * np.array(color)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int], font: Any
) -> None:
    """Write a text on a background of a color, moved into the image."""
    width, height = draw.im.size
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    x = max(2 - left, min(place[0], width - 2 - right))
    y = max(2 - top, min(place[1], height - 2 - bottom))
    draw.rectangle((x + left - 2, y + top - 2, x + right + 2, y + bottom + 2), fill=color)
    draw.text((x, y), text, BLACK if sum(color) > 330 else WHITE, font)
