"""Errors of data loading that name the file, in one line, from any worker process."""

from typing import Any

from torch.utils.data import Dataset

from mmplugin.errors import UserError


class NamedLoad:
    """A transform that loads a file, and that names the file when this fails."""

    def __init__(self, transform: Any):
        self.transform = transform

    def __call__(self, results: dict) -> dict | None:
        """Run the transform."""
        try:
            loaded = self.transform(results)
            _check_mask_size(loaded)
            return loaded
        except UserError:
            raise
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, cv2.error, AttributeError of None
            paths = [str(results[name]) for name in ('img_path', 'seg_map_path') if results.get(name)]
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f'{" or ".join(paths) or "an image"} cannot be loaded ({reason[0]}). Replace or remove the file; '
                '`mmplugin check-data` lists all such files'
            ) from error

    def __repr__(self) -> str:
        return repr(self.transform)


def _check_mask_size(results: dict | None) -> None:
    """Refuse a segmentation mask of another size than its image, which no later step could name."""
    if not results or results.get('gt_seg_map') is None or 'ori_shape' not in results:
        return
    mask, image = results['gt_seg_map'].shape[:2], tuple(results['ori_shape'][:2])
    if mask != image:
        raise UserError(
            f'{results.get("seg_map_path", "a mask")} has {mask[1]}x{mask[0]} pixels, but its image '
            f'{results.get("img_path", "")} has {image[1]}x{image[0]}. If they are swapped, the image has an EXIF '
            'rotation: save it upright. `mmplugin check-data` lists all such files'
        )


def name_files_in_errors_(dataset: Dataset) -> None:
    """Wrap the transforms of a dataset that load files, also inside wrappers such as RepeatDataset."""
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or [])]:
        if inner is not None:
            name_files_in_errors_(inner)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', None) or []
    for i, transform in enumerate(transforms):
        if type(transform).__name__.startswith('Load'):
            transforms[i] = NamedLoad(transform)
