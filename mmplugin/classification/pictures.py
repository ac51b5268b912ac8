"""Pictures of a classification report: mistakes first."""

from pathlib import Path

import mmcv
import numpy as np
from mmengine.dataset import default_collate
from mmengine.fileio import get
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

CANDIDATES = 64  # images, evenly spaced over the validation set
SIDE = 400  # pixels


def chosen_samples(runner: Runner, model: BaseModel, count: int) -> list[BaseDataElement]:
    """Return predictions for some validation images: mistakes first, those with the highest score leading."""
    dataset = runner.val_dataloader.dataset
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(CANDIDATES, len(dataset))).astype(int))
    samples = [sample for index in indices for sample in model.test_step(default_collate([dataset[int(index)]]))]

    def rank(sample: BaseDataElement) -> tuple[bool, float]:
        return int(sample.pred_label) == int(sample.gt_label), -float(sample.pred_score.max())

    return sorted(samples, key=rank)[:count]


def draw_label(visualizer: Visualizer, sample: BaseDataElement, target: Path) -> None:
    """Draw an image with its true and its predicted class."""
    image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
    classes = (visualizer.dataset_meta or {}).get('classes')
    visualizer.visualize_cls(image, sample.cpu(), classes, resize=SIDE, out_file=str(target))
