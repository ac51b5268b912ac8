"""Pictures of predictions beside the truth, with OpenCV alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner

GAP = 6


def _array(values: Any) -> np.ndarray:
    """Boxes, labels, masks of any of the libraries' structures."""
    for name in ('tensor', 'masks'):
        values = getattr(values, name, values)
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else np.asarray(values)


def _label(image: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int], scale: float) -> None:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.35 * scale
    (width, height), base = cv2.getTextSize(text, font, size, 1)
    x = int(np.clip(corner[0], 0, max(0, image.shape[1] - width)))
    y = max(corner[1], height + base)
    cv2.rectangle(image, (x, y - height - base), (x + width, y), colour, -1)
    ink = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
    cv2.putText(image, text, (x, y - base + 1), font, size, ink, 1, cv2.LINE_AA)


def draw_instances(
    image: np.ndarray, instances: Any, classes: Sequence[str], palette: Sequence, score_thr: float = 0.3
) -> np.ndarray:
    """Masks, boxes, names and scores over a BGR image; the weak ones first, so that the strong ones are on top."""
    image = image.copy()
    boxes, labels = _array(instances['bboxes']), _array(instances['labels'])
    scores = _array(instances['scores']) if 'scores' in instances else None
    masks = _array(instances['masks']) if 'masks' in instances else None
    order = np.arange(len(labels)) if scores is None else np.argsort(scores)
    scale = max(1.0, min(image.shape[:2]) / 400)
    for i in order:
        if scores is not None and scores[i] < score_thr:
            continue
        colour = tuple(int(channel) for channel in reversed(palette[labels[i]]))
        if masks is not None and masks[i].any():
            inside = masks[i].astype(bool)
            image[inside] = (0.55 * image[inside] + 0.45 * np.array(colour)).astype(np.uint8)
        x1, y1, x2, y2 = (round(float(side)) for side in boxes[i])
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, max(1, round(scale)))
        text = classes[labels[i]] + ('' if scores is None else f' {scores[i]:.2f}')
        _label(image, text, (x1, y1), colour, scale)
    return image


def draw_semantic(image: np.ndarray, labels: np.ndarray, palette: Sequence, ignore: int = 255) -> np.ndarray:
    """Class colours over a BGR image; what is ignored stays grey."""
    table = np.full((256, 3), 128, dtype=np.float32)
    table[: len(palette)] = np.asarray(palette, dtype=np.float32)[:, ::-1]
    table[ignore] = 128
    return (0.45 * image + 0.55 * table[labels]).astype(np.uint8)


def beside(left: np.ndarray, right: np.ndarray, titles: tuple[str, str] = ('prediction', 'truth')) -> np.ndarray:
    """Two pictures in a row, small ones enlarged, each under its title."""
    factor = max(1, round(320 / min(left.shape[:2])))
    bar = max(22, 22 * factor // 2)
    parts = []
    for picture, title in zip((left, right), titles, strict=True):
        large = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        head = np.full((bar, large.shape[1], 3), 255, dtype=np.uint8)
        cv2.putText(head, title, (4, bar - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
        parts += [np.vstack([head, large]), np.full((large.shape[0] + bar, GAP, 3), 255, dtype=np.uint8)]
    return np.hstack(parts[:-1])


def draw_sample(sample: Any, meta: dict, score_thr: float = 0.3) -> np.ndarray:
    """One measured image: prediction and, where it is known, the truth.

    Args:
        sample: A data sample with predictions, detection or segmentation.
        meta: ``classes`` and ``palette``.
        score_thr: Weaker detections are not drawn.
    """
    image = cv2.imdecode(np.fromfile(sample.img_path, dtype=np.uint8), cv2.IMREAD_COLOR)
    classes, palette = meta['classes'], meta['palette']
    factor = max(1, round(320 / min(image.shape[:2])))
    if 'pred_sem_seg' in sample:
        found = draw_semantic(image, _array(sample.pred_sem_seg.data)[0], palette)
        if 'gt_sem_seg' not in sample:
            return found
        return beside(found, draw_semantic(image, _array(sample.gt_sem_seg.data)[0], palette))
    # small pictures are enlarged before drawing, so that names can be read
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    found = draw_instances(image, _enlarged(sample.pred_instances, factor), classes, palette, score_thr)
    if 'gt_instances' not in sample:
        return found
    return beside(found, draw_instances(image, _enlarged(sample.gt_instances, factor), classes, palette))


def _enlarged(instances: Any, factor: int) -> dict:
    parts = {'bboxes': _array(instances['bboxes']) * factor, 'labels': _array(instances['labels'])}
    if 'scores' in instances:
        parts['scores'] = _array(instances['scores'])
    if 'masks' in instances:
        masks = _array(instances['masks']).astype(np.uint8)
        parts['masks'] = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    return parts


class DrawHook(Hook):
    """``--show-dir``: writes a picture of each tested image.

    Args:
        folder: Where to.
        score_thr: Weaker detections are not drawn.
    """

    def __init__(self, folder: str, score_thr: float = 0.3):
        self.folder, self.score_thr = Path(folder), score_thr

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for sample in outputs:
            picture = draw_sample(sample, runner.test_dataloader.dataset.metainfo, self.score_thr)
            target = self.folder / f'{Path(sample.img_path).stem}.jpg'
            ok, code = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
            if not ok:
                raise OSError(f'OpenCV could not encode {target}')
            target.write_bytes(code.tobytes())
