"""DrawHook: ground truth and prediction side by side, for every tested image."""

import warnings
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

READABLE_SIDE = 400  # pixels; smaller images are enlarged before class names are drawn


class DrawHook(Hook):
    """Draw every tested image with the visualizer of the config, ground truth on the left.

    mmdet and mmseg have such hooks, too. This one writes to the same kind of folder for both, and enlarges small
    images.

    Args:
        folder: Where the images go.
        score_thr: Detections with a lower score are not drawn.
    """

    priority = 'HIGH'  # before the timer, which would count drawing as waiting for data

    def __init__(self, folder: str, score_thr: float = 0.3):
        self.folder, self.score_thr = Path(folder), score_thr

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw the images of a batch."""
        for sample in outputs:
            target = self.folder / f'{Path(sample.img_path).stem}.jpg'
            draw_sample(runner.visualizer, sample, target, self.score_thr)


def draw_sample(visualizer: Visualizer, sample: BaseDataElement, target: Path, score_thr: float = 0.3) -> None:
    """Draw the ground truth, if any, and the prediction of one image side by side.

    Args:
        visualizer: ``DetLocalVisualizer``, ``SegLocalVisualizer`` or ``UniversalVisualizer``.
        sample: A data sample with a prediction.
        target: The image file to write.
        score_thr: Detections with a lower score are not drawn.
    """
    if 'pred_label' in sample:
        from mmplugin.classification.pictures import draw_label

        draw_label(visualizer, sample, target)
        return
    image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
    sample = sample.cpu()  # a copy
    factor = round(READABLE_SIDE / min(image.shape[:2]))
    if factor > 1:
        height, width = image.shape[:2]
        image = mmcv.imresize(image, (width * factor, height * factor), interpolation='bicubic')
        _enlarge_(sample, factor)
    options = {'pred_score_thr': score_thr}
    if 'pred_sem_seg' in sample:
        options = {}
        visualizer._get_center_loc = label_position
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # polygons that touch the border of the image
        visualizer.add_datasample(target.name, image, sample, out_file=str(target), **options)


def label_position(mask: np.ndarray) -> np.ndarray:
    """Return the middle (x, y) of the longest row of a mask.

    ``SegLocalVisualizer`` sorts the positions of all pixels to find it, which takes seconds per image.
    """
    y = mask.sum(axis=1).argmax()
    columns = np.flatnonzero(mask[y])
    return np.array([columns[len(columns) // 2], y])


def _enlarge_(sample: BaseDataElement, factor: int) -> None:
    for name in {'gt_instances', 'pred_instances'} & set(sample.keys()):
        instances = sample.get(name)
        if 'bboxes' in instances:
            instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * factor
        if 'masks' in instances:
            masks = instances.masks
            masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else np.asarray(masks)
            instances.masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    for name in {'gt_sem_seg', 'pred_sem_seg'} & set(sample.keys()):
        labels = sample.get(name).data
        setattr(sample, name, PixelData(data=labels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)))
