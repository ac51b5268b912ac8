"""Images of ground truth and prediction, drawn by the visualizers of mmdet and mmseg."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

import mmplugin  # noqa: F401  stock mmdet cannot be imported without its operators
from mmplugin import stack
from mmplugin.hooks.draw import draw_sample, label_position

GRAY, RED, BLUE = 128, (255, 0, 0), (0, 0, 255)


@pytest.fixture
def image_path(tmp_path: Path) -> str:
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.full((40, 60, 3), GRAY, dtype=np.uint8))
    return str(path)


def _drawn(visualizer, sample, folder: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    """Return the two halves of what was drawn, in RGB."""
    visualizer.dataset_meta = {'classes': ('cat', 'dog'), 'palette': [RED, BLUE]}
    draw_sample(visualizer, sample, folder / 'drawn.png', **options)
    image = cv2.imread(str(folder / 'drawn.png'))[..., ::-1].astype(int)
    assert image.shape == (400, 1200, 3), 'ten times the size, twice the width'
    return image[:, :600], image[:, 600:]


@pytest.mark.parametrize('masks', ['none', 'bitmap', 'polygon'])
def test_boxes_and_masks_are_where_they_should_be(masks: str, image_path: str, tmp_path: Path):
    stack.import_quietly('mmdet.visualization')
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks, PolygonMasks
    from mmdet.visualization import DetLocalVisualizer

    box = torch.tensor([[10.0, 10, 30, 30]])
    sample = DetDataSample(metainfo=dict(img_path=image_path))
    sample.gt_instances = InstanceData(bboxes=box, labels=torch.tensor([0]))
    sample.pred_instances = InstanceData(
        bboxes=torch.cat([box, box + 20]), labels=torch.tensor([1, 1]), scores=torch.tensor([0.9, 0.2])
    )
    if masks == 'bitmap':
        square = np.zeros((1, 40, 60), dtype=np.uint8)
        square[:, 10:30, 10:30] = 1
        sample.gt_instances.masks = BitmapMasks(square, 40, 60)
        sample.pred_instances.masks = torch.from_numpy(np.concatenate([square, square])).bool()
    elif masks == 'polygon':
        polygon = np.array([10, 10, 30, 10, 30, 30, 10, 30], dtype=np.float32)
        sample.gt_instances.masks = PolygonMasks([[polygon]], 40, 60)
    truth, prediction = _drawn(DetLocalVisualizer(line_width=4), sample, tmp_path, score_thr=0.3)
    bottom = slice(290, 310), slice(150, 250)  # of the box, away from the class name
    assert (truth[..., 0] - truth[..., 2])[bottom].max() > 100, 'red: ground truth'
    assert (prediction[..., 2] - prediction[..., 0])[bottom].max() > 100, 'blue: prediction'
    assert (np.abs(prediction - GRAY)[350:, 350:] < 5).all(), 'the score of the other detection is too low'
    filled = (np.abs(truth - GRAY)[240:260, 240:260] > 20).any()
    assert filled == (masks != 'none')
    assert sample.gt_instances.bboxes.tolist() == box.tolist(), 'the sample itself does not change'


def test_class_names_are_where_mmseg_puts_them():
    stack.import_quietly('mmseg.visualization')
    from mmseg.visualization import SegLocalVisualizer

    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.9):
        mask = (rng.random((17, 23)) < share).astype(np.uint8)
        np.testing.assert_array_equal(label_position(mask), SegLocalVisualizer()._get_center_loc(mask))


def test_labels_of_pixels_are_where_they_should_be(image_path: str, tmp_path: Path):
    stack.import_quietly('mmseg.visualization')
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    labels = torch.zeros(1, 40, 60, dtype=torch.long)
    labels[:, :, 30:] = 1
    sample = SegDataSample(metainfo=dict(img_path=image_path))
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=labels), PixelData(data=1 - labels)
    truth, prediction = _drawn(SegLocalVisualizer(alpha=0.5), sample, tmp_path)
    for image, left, right in ((truth, RED, BLUE), (prediction, BLUE, RED)):
        np.testing.assert_allclose(image[395, 10], (GRAY + np.array(left)) / 2, atol=2)
        np.testing.assert_allclose(image[395, 590], (GRAY + np.array(right)) / 2, atol=2)
