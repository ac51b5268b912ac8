"""Predictions of converted weights for a few images, as a sanity check."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from mmplugin.errors import UserError
from mmplugin.image_files import check_image
from mmplugin.tables import Table, show

from .classifier import Classifier

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
SIDE, SHORTER_SIDE = 224, 256
LEAST_SIDE, LARGEST_SIDE = 32, 2048
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def verify(
    backbone: nn.Module,
    classifier: Classifier,
    folder: str | Path,
    labels: list[str] | None,
    console: Console,
    side: int = SIDE,
) -> None:
    """Print the top-1 prediction for every image in a folder.

    Args:
        backbone: Backbone whose last output is that of its last stage.
        classifier: Classification head of the same weights.
        folder: Folder of images. Subfolders are not searched.
        labels: Class names, or None to print class numbers only.
        console: Console to print to.
        side: Height and width of the images, as in training.
    """
    rows = []
    for path in _images(folder):
        with torch.inference_mode():
            confidence, index = classifier(backbone(_read(path, side))[-1]).softmax(1)[0].max(0)
        name = [labels[index]] if labels else []
        rows.append([path.name, str(index.item()), *name, f'{confidence.item():.1%}'])
    head = ['image', 'class', *(['name'] if labels else []), 'confidence']
    show([Table('Top-1 predictions', head, rows, left=('name',))], console)
    if not labels:
        console.print('The file has no class names; pass them with --labels FILE.')


def class_names(path: str | Path | None, checkpoint: Mapping[str, Any], classes: int) -> list[str] | None:
    """Read the class names from a file, or from the checkpoint if it has them, as those of timm and mmpretrain do."""
    if path is None:
        known = [
            _at(checkpoint, 'pretrained_cfg', 'label_names'),
            _at(checkpoint, 'meta', 'dataset_meta', 'classes'),
            _at(checkpoint, 'meta', 'CLASSES'),
        ]
        return next((list(names) for names in known if isinstance(names, list | tuple) and len(names) == classes), None)
    try:
        text = Path(path).read_text(encoding='utf-8')
        content = json.loads(text) if Path(path).suffix == '.json' else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f'--labels {path}: cannot be read ({error})') from error
    if isinstance(content, dict):
        content = content.get('label_names') or _at(content, 'pretrained_cfg', 'label_names')
    if not isinstance(content, list) or len(content) != classes:
        count = len(content) if isinstance(content, list) else 'no'
        raise UserError(f'--labels {path}: {count} names, but the head has {classes} classes; use one name per line')
    return [str(name) for name in content]


def _at(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _images(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'--verify {folder}: folder not found')
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise UserError(f'--verify {folder}: the folder has no images; allowed extensions: {" ".join(EXTENSIONS)}')
    return found


def _read(path: Path, side: int) -> Tensor:
    """Read an image as for ImageNet evaluation: at 224, its shorter side becomes 256; center crop, normalized."""
    import cv2
    import numpy as np

    check_image(path)
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f'--verify: {path} is not an image, or damaged')
    height, width = image.shape[:2]
    scale = side * SHORTER_SIDE / SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = ((length - side) // 2 for length in image.shape[:2])
    image = image[top : top + side, left : left + side, ::-1] / 255  # BGR to RGB
    return torch.from_numpy((image - MEAN) / STD).float().permute(2, 0, 1)[None]
