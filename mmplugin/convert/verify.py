"""A look at what converted weights think of a few pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmplugin.errors import UserError

from .classifier import Classifier

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
SIDE, SHORTER_SIDE = 224, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def verify(
    backbone: nn.Module, classifier: Classifier, folder: str | Path, labels: list[str] | None, console: Console
) -> None:
    """Prints the best class of every picture in a folder.

    Args:
        backbone: With its last stage among the outputs.
        classifier: The head that came with the weights.
        folder: Pictures, not searched recursively.
        labels: Names of the classes; numbers are printed without.
        console: Where to print.
    """
    style = dict(title_justify='left', title_style='bold', box=box.HORIZONTALS, min_width=72)
    table = Table(title='what the head sees', **style)
    for name, justify in {'picture': 'left', 'class': 'right', 'name': 'left', 'confidence': 'right'}.items():
        if name != 'name' or labels:
            table.add_column(name, justify=justify)
    for path in _pictures(folder):
        with torch.inference_mode():
            confidence, index = classifier(backbone(_read(path))[-1]).softmax(1)[0].max(0)
        name = [labels[index]] if labels else []
        table.add_row(path.name, str(index.item()), *name, f'{confidence.item():.1%}')
    console.print(table)
    if not labels:
        console.print('Class numbers only: the file has no class names; --labels FILE brings them.')


def class_names(path: str | Path | None, checkpoint: Mapping[str, Any], classes: int) -> list[str] | None:
    """Names of the classes: from a file, or from the checkpoint where it has them (timm, mmpretrain)."""
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
        raise UserError(f'--labels {path}: {count} names, but the head has {classes} classes; one name a line')
    return [str(name) for name in content]


def _at(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _pictures(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'--verify {folder}: no such folder')
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise UserError(f'--verify {folder}: no pictures in it; looked for {" ".join(PICTURES)}')
    return found


def _read(path: Path) -> Tensor:
    """A picture as the networks were evaluated: shorter side 256, centre 224x224, ImageNet's mean and deviation."""
    import cv2
    import numpy as np

    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f'--verify: {path} is no picture')
    height, width = image.shape[:2]
    scale = SHORTER_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = ((side - SIDE) // 2 for side in image.shape[:2])
    image = image[top : top + SIDE, left : left + SIDE, ::-1] / 255  # BGR to RGB
    return torch.from_numpy((image - MEAN) / STD).float().permute(2, 0, 1)[None]
