"""Draw predictions of a trained mini detector on built-in validation images into docs/images/predictions.jpg.

Run ``make demo``, then ``python docs/scripts/predictions.py``. The image is a grid with rows of equal width.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

WORK_DIR = Path('work_dirs/demo/detection')
TARGET = Path(__file__).parents[1] / 'images' / 'predictions.jpg'
IMAGES = (82, 51, 65, 28, 87, 15, 55, 64)  # chosen for variety among those with many correct detections
COLUMNS, WIDTH, GAP = 4, 1600, 8  # of the grid; width and gap in pixels
ENLARGED = 2  # the built-in images are small: enlarge them before drawing, so that text is sharp
SCORE = 0.4


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, default=WORK_DIR, help='of the training (%(default)s)')
    options = parser.parse_args(argv)
    (config,) = options.work_dir.glob('*.py')
    dataset = Config.fromfile(config).val_dataloader.dataset
    paths = [str(Path(dataset.data_root, dataset.data_prefix.img, f'{number:06d}.jpg')) for number in IMAGES]
    detector = DetInferencer(str(config), find_latest_checkpoint(options.work_dir), 'cpu', show_progress=False)
    samples = detector(paths, return_datasamples=True, no_save_vis=True)['predictions']
    visualizer = DetLocalVisualizer(text_color=(255, 255, 255), line_width=2, alpha=0.5)
    visualizer.dataset_meta = dataset.metainfo
    np.random.seed(0)  # the visualizer varies the colors of masks
    drawn = [draw(visualizer, path, sample) for path, sample in zip(paths, samples, strict=True)]
    cv2.imwrite(str(TARGET), grid(drawn)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def draw(visualizer: DetLocalVisualizer, path: str, sample: DetDataSample) -> np.ndarray:
    """Return the enlarged RGB image with masks, boxes, classes and scores."""
    image = cv2.resize(cv2.imread(path)[..., ::-1], None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    found = sample.pred_instances[sample.pred_instances.scores >= SCORE]
    found.bboxes = found.bboxes * ENLARGED
    found.masks = found.masks.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)
    sample.pred_instances = found
    visualizer.add_datasample('', image, sample, draw_gt=False, pred_score_thr=SCORE)
    return visualizer.get_image()


def grid(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows of ``COLUMNS`` images, each row scaled to ``WIDTH`` with images of the same height."""
    rows = []
    for start in range(0, len(images), COLUMNS):
        row = images[start : start + COLUMNS]
        ratios = [image.shape[1] / image.shape[0] for image in row]
        height = round((WIDTH - GAP * (len(row) - 1)) / sum(ratios))
        edges = np.cumsum([0, *(ratio * height + GAP for ratio in ratios)]).round().astype(int)
        strip = np.full((height, WIDTH, 3), 255, dtype=np.uint8)
        for image, left, right in zip(row, edges, [*edges[1:-1] - GAP, WIDTH], strict=False):
            strip[:, left:right] = cv2.resize(image, (int(right - left), height), interpolation=cv2.INTER_AREA)
        rows += [strip, np.full((GAP, WIDTH, 3), 255, dtype=np.uint8)]
    return np.vstack(rows[:-1])


if __name__ == '__main__':
    main()
