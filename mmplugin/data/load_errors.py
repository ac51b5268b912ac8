"""Errors of data loading that name the file, in one line, from any worker process."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmplugin.config_edits import dicts
from mmplugin.errors import UserError
from mmplugin.files import require_file
from mmplugin.image_files import MOST_MASK_PIXELS, MOST_PIXELS, check_image
from mmplugin.text import some


class NamedTransform:
    """A transform that names the file when it fails: any error of one that loads, else those of OpenCV."""

    def __init__(self, transform: Any):
        self.transform = transform
        name = type(transform).__name__
        self.loads = name.startswith('Load')
        self.reads = 'seg_map_path' if 'Annotations' in name else 'img_path'

    def __call__(self, results: dict) -> dict | None:
        """Run the transform."""
        if self.loads and results.get(self.reads):
            check_image(results[self.reads], MOST_MASK_PIXELS if self.reads == 'seg_map_path' else MOST_PIXELS)
        try:
            changed = self.transform(results)
        except UserError:
            raise
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, cv2.error, AttributeError of None
            if not self.loads and type(error).__module__ != 'cv2':
                raise
            paths = [str(results[name]) for name in ('img_path', 'seg_map_path') if results.get(name)]
            done = 'loaded' if self.loads else f'transformed by {type(self.transform).__name__}'
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f'{" or ".join(paths) or "an image"} cannot be {done} ({reason[0]}). Replace or remove the file; '
                '`mmplugin check-data` lists all files that cannot be read'
            ) from error
        if self.loads:
            _check_mask_size_(changed)
        return changed

    def __repr__(self) -> str:
        return repr(self.transform)


def _check_mask_size_(results: dict | None) -> None:
    """Refuse a segmentation mask of another size than its image, which no later step could name.

    mmseg removes sides of one pixel from masks; they are restored.
    """
    if not results or results.get('gt_seg_map') is None or 'ori_shape' not in results:
        return
    image = tuple(results['ori_shape'][:2])
    if 1 in image and results['gt_seg_map'].size == math.prod(image):
        results['gt_seg_map'] = results['gt_seg_map'].reshape(image)
    mask = np.atleast_2d(results['gt_seg_map']).shape[:2]
    if mask != image:
        raise UserError(
            f'{results.get("seg_map_path", "a mask")} has {mask[1]}x{mask[0]} pixels, but its image '
            f'{results.get("img_path", "")} has {image[1]}x{image[0]}. If they are swapped, the image has an EXIF '
            'rotation: save it upright. `mmplugin check-data` lists all such files'
        )


def name_files_in_errors_(dataset: Dataset) -> None:
    """Wrap the transforms of a dataset, also inside wrappers such as RepeatDataset."""
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]:
        if inner is not None:
            name_files_in_errors_(inner)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None) or []
    for i, transform in enumerate(transforms):
        transforms[i] = NamedTransform(transform)


def require_annotation_files(settings: Any) -> None:
    """Refuse annotations in a named pipe or a device, on which a reader would wait for ever; folders are allowed."""
    for node in dicts(settings):
        name = node.get('ann_file')
        path = Path(node.get('data_root') or '', name) if name and isinstance(name, str) else None
        if path and path.exists() and not path.is_dir():
            require_file(path)


@contextmanager
def empty_dataset_is_named(loader: Any) -> Iterator[None]:
    """Turn numpy's error for a dataset without images into a message with the files that it reads."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):
            raise
        sets = [node for node in dicts(loader) if isinstance(node, Mapping) and 'data_root' in node]
        files = [str(Path(node.get('data_root') or '', node.get('ann_file') or '')) for node in sets]
        raise UserError(
            f'{some(files) or "the dataset"}: no image is left to load. There are none, or filter_cfg removes all of '
            'them: those without annotations (filter_empty_gt) and those with a shorter side (min_size). '
            '`mmplugin check-data` lists what is wrong'
        ) from error
