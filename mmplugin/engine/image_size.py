"""The size of images, in all pipelines and in what depends on it."""

import math
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from mmplugin.config_edits import dicts, is_classification, is_segmentation

LARGEST_STRIDE = 32  # of which recipes pad images to a multiple
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# An anchor of scale s on stride t has the side s * t. A box of that size is off the nearest anchor by t / 4 in each
# direction on average, which leaves an IoU of 0.62 for s = 2 and 0.39 for s = 1; RetinaNet assigns boxes from 0.5 on.
# The RPN of Mask R-CNN assigns from 0.7 on: 0.78 for s = 4, 0.62 for s = 2. Smaller scales would miss most boxes.
LEAST_ANCHOR_SCALE = {'octave_base_scale': 2.0, 'scales': 4.0}


def set_size_(cfg: Config, height: int, width: int) -> str:
    """Set the image size for training, validation and testing. Return what follows, in words.

    Detection fits each image into the size, as the recipes do with 800x1333. Segmentation trains on crops of the size,
    and tests whole images whose short side is that of the size. Other scales, for example those of test-time
    augmentation, keep their ratio to it. Classification crops to the size, in tests after resizing the shorter side in
    the ratio of the recipe.
    """
    text = f'images of {height}x{width}'
    if is_classification(cfg):
        _set_classification_(cfg, height, width)
    elif is_segmentation(cfg):
        _set_segmentation_(cfg, height, width)
    else:
        old = _test_scale(cfg)
        _set_detection_(cfg, height, width, old)
        factor = _typical_side((width, height)) / _typical_side(old) if old else 1.0
        text += _scale_anchors_(cfg.model, factor)
    for name in ('train', 'test'):  # variables that configs of OpenMMLab keep, and some of its functions read
        if f'{name}_pipeline' in cfg and 'pipeline' in cfg[f'{name}_dataloader'].dataset:
            cfg[f'{name}_pipeline'] = cfg[f'{name}_dataloader'].dataset.pipeline
    return text


def _steps(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield the transforms of all pipelines once, with their names without scope."""
    seen = set()
    for node in dicts([cfg.get(name) for name in (*LOADERS, 'tta_pipeline')]):
        if id(node) not in seen and isinstance(node.get('type'), str):
            seen.add(id(node))
            yield node['type'].rpartition('.')[2], node


def _test_scale(cfg: Config) -> tuple[int, int] | None:
    """Return width and height of the first ``Resize`` that testing applies."""
    for node in dicts(cfg.get('test_dataloader') or cfg.get('val_dataloader')):
        if str(node.get('type')).endswith('Resize') and _is_pair(node.get('scale')):
            return tuple(node['scale'])
    return None


def _is_pair(scale: Any) -> bool:
    return isinstance(scale, list | tuple) and len(scale) == 2 and all(isinstance(side, int) for side in scale)


def _set_detection_(cfg: Config, height: int, width: int, old: tuple[int, int] | None) -> None:
    old = old or (width, height)

    def resized(scale: Any) -> Any:
        """Scale (width, height), or each of several of them."""
        if _is_pair(scale):
            return (round(scale[0] * width / old[0]), round(scale[1] * height / old[1]))
        return [resized(one) for one in scale] if isinstance(scale, list | tuple) else scale

    for name, step in _steps(cfg):
        for key in ('scale', 'scales'):
            if name in ('Resize', 'RandomResize', 'RandomChoiceResize') and key in step:
                step[key] = resized(step[key])
        if name == 'RandomCrop' and _is_pair(step.get('crop_size')):
            step['crop_size'] = (width, height)
        if name == 'Pad' and step.get('size'):
            step['size'] = (width, height)


def _set_segmentation_(cfg: Config, height: int, width: int) -> None:
    old = next((step['crop_size'] for name, step in _steps(cfg) if name == 'RandomCrop'), None) or _test_scale(cfg)
    old_side = min(old) if isinstance(old, list | tuple) else old or min(height, width)
    factor = min(height, width) / old_side

    def resized(scale: Any) -> Any:
        if _is_pair(scale):
            return tuple(round(side * factor) for side in scale)
        return [resized(one) for one in scale] if isinstance(scale, list | tuple) else scale

    for name, step in _steps(cfg):
        for key in ('scale', 'scales'):
            if name in ('Resize', 'RandomResize', 'RandomChoiceResize') and key in step:
                step[key] = resized(step[key])
        if name == 'RandomCrop':
            step['crop_size'] = (height, width)  # mmseg's order; mmdet and Pad have (width, height)
        if name == 'Pad' and step.get('size'):
            step['size'] = (width, height)
    if (cfg.model.get('data_preprocessor') or {}).get('size'):
        # Crops are padded to what the network needs, as tested images are; padded pixels have no label.
        cfg.model.data_preprocessor.size = tuple(
            math.ceil(side / LARGEST_STRIDE) * LARGEST_STRIDE for side in (height, width)
        )


def _set_classification_(cfg: Config, height: int, width: int) -> None:
    for loader in filter(None, map(cfg.get, LOADERS)):
        steps = {str(step['type']).rpartition('.')[2]: step for step in loader.dataset.pipeline}
        if 'RandomResizedCrop' in steps:
            steps['RandomResizedCrop']['scale'] = (height, width)
        crop = steps.get('CenterCrop')
        if crop is not None:
            old = crop['crop_size']
            if 'ResizeEdge' in steps:
                edge = steps['ResizeEdge']
                edge['scale'] = round(edge['scale'] * max(height, width) / (old if isinstance(old, int) else max(old)))
            crop['crop_size'] = (width, height)


def _typical_side(scale: tuple[int, int]) -> float:
    """Return a third of the short side of an image of 4:3, the most frequent shape, that fits into a size."""
    return min(max(scale) / 4, min(scale) / 3)


def _scale_anchors_(model: Any, factor: float) -> str:
    """Shrink anchors with the image, because its objects shrink. Strides stay: they belong to the network.

    Anchors do not grow with larger images, which show smaller objects than before.
    """
    text = ''
    for node in dicts(model):
        generator = node.get('anchor_generator') or {}
        for key, least in LEAST_ANCHOR_SCALE.items():
            if generator.get(key) is None or factor >= 1:
                continue
            old = generator[key]
            several = isinstance(old, list | tuple)
            new = [min(scale, max(least, round(scale * factor, 2))) for scale in (old if several else [old])]
            generator[key] = new if several else new[0]
            first = old[0] if several else old
            if new[0] != first:
                text = f', anchors of {new[0]:g} strides instead of {first:g}'
    return text
