"""A sheet of training images with their annotations, as training reads them."""

from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image, ImageDraw, ImageFont

from mmplugin import stack
from mmplugin.config_edits import is_classification, is_segmentation
from mmplugin.data.layouts.numbering import IGNORED
from mmplugin.data.load_errors import name_files_in_errors_
from mmplugin.data.splits import sample, splits
from mmplugin.errors import UserError
from mmplugin.palette import palette
from mmplugin.text import printable

COLUMNS, ROWS = 3, 3
CELL, GAP = 420, 8  # side of an image and space between images, in pixels
FONT_SIZE, LINE = 15, 22
MASK_SHARE = 0.4  # of the color of a mask over the image
SMALLEST_NAMED = 0.004  # share of the image that a region needs to be named
MOST_NAMES = 60  # in the legend
LOADING = ('LoadImageFromFile', 'LoadAnnotations')
UNLABELLED, BLACK, WHITE, GRAY = 'unlabelled', (0, 0, 0), (255, 255, 255), (128, 128, 128)


def draw_sheet(cfg: Config, target: Path) -> bool:
    """Draw nine training images with boxes, masks and class names into one image file.

    The dataset of the config loads images and annotations, so the sheet shows what training sees.

    Args:
        cfg: The config.
        target: The file; its suffix is the format.

    Returns:
        Whether there are local training images to draw; those of a classifier are not drawn.
    """
    if is_classification(cfg):  # a folder per class needs no drawing
        return False
    training = [split for split in splits(cfg) if split.name == 'train' and split.dataset_class and not split.remote]
    if not training:
        return False
    dataset = _dataset(cfg, training[0].config)
    classes = [printable(name) for name in dataset.metainfo['classes']]  # Pillow cannot measure lines
    colors = palette(len(classes))
    chosen = sample(list(range(len(dataset))), COLUMNS * ROWS)
    cells = [_draw(dataset[index], classes, colors) for index in chosen]
    legend = list(zip(classes, colors, strict=True))[:MOST_NAMES]
    if is_segmentation(cfg):
        legend.append((UNLABELLED, BLACK))
    try:
        _arrange(cells, legend).save(target, quality=90)
    except (OSError, ValueError) as error:
        raise UserError(f'--sheet {target} cannot be written ({error}); name a .jpg or .png file') from error
    return True


def _dataset(cfg: Config, settings: dict[str, Any]) -> Any:
    """Build a dataset with a pipeline that only loads."""
    scope = 'mmseg' if is_segmentation(cfg) else 'mmdet'
    stack.import_quietly(f'{scope}.datasets')
    pipeline = [step for step in settings['pipeline'] if str(step['type']).rpartition('.')[2] in LOADING]
    silent = redirect_stdout(StringIO())  # pycocotools prints
    with silent, DefaultScope.overwrite_default_scope(scope):
        dataset = import_module(f'{scope}.registry').DATASETS.build({**settings, 'pipeline': pipeline})
    name_files_in_errors_(dataset)
    return dataset


def _draw(loaded: dict[str, Any], classes: list[str], colors: list[tuple[int, int, int]]) -> Image.Image:
    """Draw what a pipeline loaded, in the size of a cell."""
    pixels = loaded['img'][..., ::-1]
    factor = CELL / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
    pixels = cv2.resize(np.ascontiguousarray(pixels).astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    if 'gt_seg_map' in loaded:
        labels = cv2.resize(loaded['gt_seg_map'].astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
        return _draw_regions(pixels, labels, classes, colors)
    numbers = loaded['gt_bboxes_labels'].tolist()
    masks = loaded['gt_masks'].to_ndarray() if 'gt_masks' in loaded else ()
    for mask, number in zip(masks, numbers, strict=False):
        inside = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST).astype(bool)
        pixels[inside] = (1 - MASK_SHARE) * pixels[inside] + MASK_SHARE * np.array(colors[number])
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    boxes = (loaded['gt_bboxes'].numpy() * factor).tolist()
    for box, number, ignored in zip(boxes, numbers, loaded['gt_ignore_flags'].tolist(), strict=True):
        color = GRAY if ignored else colors[number]
        draw.rectangle(box, outline=color, width=2)
        name = f'{classes[number]} (ignored)' if ignored else classes[number]
        _write(draw, (box[0] + 2, max(0, box[1] - LINE + 3)), name, color)
    return image


def _draw_regions(
    pixels: np.ndarray, labels: np.ndarray, classes: list[str], colors: list[tuple[int, int, int]]
) -> Image.Image:
    """Color the pixels of each class, and write its name into its widest place."""
    named = {i: (classes[i], colors[i]) for i in range(len(classes))} | {IGNORED: (UNLABELLED, BLACK)}
    places = {}
    for label in np.unique(labels).tolist():
        inside = labels == label
        _, color = named.get(label, (f'label {label}', BLACK))
        pixels[inside] = (1 - MASK_SHARE) * pixels[inside] + MASK_SHARE * np.array(color)
        if inside.mean() >= SMALLEST_NAMED:
            depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
            places[label] = divmod(int(depth.argmax()), depth.shape[1])
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for label, (y, x) in places.items():
        name, color = named.get(label, (f'label {label}', BLACK))
        _write(draw, (x - draw.textlength(name, _font()) / 2, y - FONT_SIZE / 2), name, color)
    return image


def _font() -> Any:
    return ImageFont.load_default(FONT_SIZE)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int]) -> None:
    """Write a text on a background of a color, moved so that it begins in the image."""
    place = max(2, place[0]), max(0, place[1])
    left, top, right, bottom = draw.textbbox(place, text, _font())
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=color)
    draw.text(place, text, BLACK if sum(color) > 330 else WHITE, _font())


def _arrange(cells: list[Image.Image], legend: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Put the images on a grid, above the names of all classes."""
    side = CELL + GAP
    rows = -(-len(cells) // COLUMNS)
    width = COLUMNS * side + GAP
    draw = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    places: list[tuple[float, float]] = []
    x, y = float(GAP), rows * side + GAP
    for name, _ in legend:
        length = draw.textlength(name, _font()) + 2 * GAP
        if x + length > width and x > GAP:
            x, y = GAP, y + LINE
        places.append((x, y))
        x += length
    sheet = Image.new('RGB', (width, int(y + LINE + GAP)), WHITE)
    for i, cell in enumerate(cells):
        sheet.paste(cell, (GAP + i % COLUMNS * side, GAP + i // COLUMNS * side))
    draw = ImageDraw.Draw(sheet)
    for (name, color), place in zip(legend, places, strict=True):
        _write(draw, (place[0] + 3, place[1]), name, color)
    return sheet
