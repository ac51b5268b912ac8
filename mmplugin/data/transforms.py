"""Transforms that mmdet and mmseg do not have."""

import math

import mmcv
from mmcv.transforms import BaseTransform

from mmplugin.data.seeded_sampler import seed_everything
from mmplugin.errors import UserError


class AlignResize(BaseTransform):
    """Fits the image into ``scale`` with its ratio kept, then stretches each side up to a multiple of ``divisor``.

    As in the published evaluations: two resizes, not one resize and a padding, so that no border is seen. The truth is
    left alone: predictions are resized to the image's own size before they are compared.

    Args:
        scale: (long side, short side) of the box to fit into, in pixels.
        divisor: What both sides are rounded up to a multiple of.
        ratio: Factor on ``scale``, for test-time augmentation.
    """

    def __init__(self, scale: tuple[int, int] = (2048, 512), divisor: int = 32, ratio: float = 1.0):
        if divisor < 1 or ratio <= 0 or min(scale) < 1:
            raise UserError(f'AlignResize: scale {scale}, divisor {divisor} and ratio {ratio} must be positive')
        self.scale = tuple(int(side * ratio + 0.5) for side in scale)
        self.divisor = divisor

    def transform(self, results: dict) -> dict:
        image = results['img']
        height, width = image.shape[:2]
        image = mmcv.imrescale(image, self.scale)
        new_height, new_width = (math.ceil(side / self.divisor) * self.divisor for side in image.shape[:2])
        results['img'] = mmcv.imresize(image, (new_width, new_height))
        results['img_shape'] = (new_height, new_width)
        results['scale'] = (new_width, new_height)
        results['scale_factor'] = (new_width / width, new_height / height)
        results['keep_ratio'] = False
        return results


class SeedSample:
    """First step of a training pipeline: takes the seed out of the index. Without one it does nothing."""

    def __call__(self, results: dict) -> dict:
        seed = getattr(results.get('sample_idx'), 'seed', None)
        if seed is not None:
            seed_everything(seed)
        return results
