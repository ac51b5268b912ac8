"""A file that cannot be loaded in the middle of an epoch ends in one message with its path."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

from mmplugin.data.load_errors import name_files_in_errors_
from mmplugin.errors import UserError, message_of


class LoadFailing:
    """A transform that fails as decoders do for a damaged file."""

    def __init__(self, error: Exception):
        self.error = error

    def __call__(self, results: dict) -> dict:
        if results['sample_idx'] == 1:
            raise self.error
        return {'value': results['sample_idx']}


class LoadNothing:
    """A transform for samples that are loaded."""

    def __call__(self, results: dict) -> dict:
        return results


class Samples(BaseDataset):
    """Three samples that name their images."""

    def load_data_list(self) -> list[dict]:
        """Return the samples."""
        return [{'img_path': f'{i}.jpg', 'seg_map_path': None} for i in range(3)]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('error', [OSError('truncated'), AttributeError("'NoneType' object has no attribute 'shape'")])
def test_an_unreadable_image_is_one_message_with_its_path(error: Exception, workers: int, tmp_path: Path):
    dataset = Samples(pipeline=[LoadFailing(error)])
    name_files_in_errors_(dataset)
    with pytest.raises(UserError) as caught:
        list(
            DataLoader(dataset, batch_size=1, num_workers=workers, multiprocessing_context='fork' if workers else None)
        )
    message = message_of(caught.value)
    assert message.startswith('1.jpg cannot be loaded (')
    assert 'Traceback' not in message
    assert '\n' not in message


def test_an_image_that_a_transform_cannot_process_is_named():
    class Resize:
        def __call__(self, results: dict) -> dict:
            import cv2

            return {'img': cv2.resize(np.zeros((30, 20000), np.uint8), (64, 0))}

    dataset = SimpleNamespace(pipeline=SimpleNamespace(transforms=[Resize()]))
    name_files_in_errors_(dataset)
    with pytest.raises(UserError, match=r'^a\.jpg cannot be transformed by Resize \(.*Replace or remove'):
        dataset.pipeline.transforms[0]({'img_path': 'a.jpg'})


def test_a_mask_of_another_size_than_its_image_names_both():
    sizes = dict(img_path='a.jpg', seg_map_path='a.png', ori_shape=(40, 60), img_shape=(20, 30))
    dataset = SimpleNamespace(pipeline=SimpleNamespace(transforms=[LoadNothing()]))
    name_files_in_errors_(dataset)
    load = dataset.pipeline.transforms[0]
    load({**sizes, 'gt_seg_map': np.zeros((40, 60))})  # the image may have been resized before its mask is loaded
    assert load({**sizes, 'ori_shape': (1, 60), 'gt_seg_map': np.zeros(60)})['gt_seg_map'].shape == (1, 60)
    with pytest.raises(UserError, match=r'a\.png has 40x60 pixels, but its image a\.jpg has 60x40\. .* EXIF'):
        load({**sizes, 'gt_seg_map': np.zeros((60, 40))})
