"""Checks of segmentation data: a valid set passes, and each damage is reported with its fix."""

import numpy as np
import pytest
import torch
from broken_copy import BrokenCopy
from mmengine.structures import PixelData
from PIL import Image

from mmplugin.data.synthetic import ensure_mini_ade
from mmplugin.errors import UserError
from mmplugin.hooks.label_range import LabelRangeHook


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return ensure_mini_ade(tmp_path_factory.mktemp('mini'), train=6, val=2)


class BrokenAde(BrokenCopy):
    def __init__(self, drawn, folder):
        super().__init__(drawn, folder)
        self.train = self.cfg.train_dataloader.dataset
        self.masks = sorted((self.root / 'annotations/training').iterdir())

    def config(self, drawn):
        def loader(split):
            return dict(
                dataset=dict(
                    type='BaseSegDataset',
                    data_root=str(self.root),
                    metainfo=dict(classes=drawn.classes),
                    data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                    reduce_zero_label=True,
                    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
                )
            )

        return dict(
            default_scope='mmseg',
            model=dict(decode_head=dict(num_classes=10), auxiliary_head=[dict(num_classes=10)]),
            train_dataloader=loader('training'),
            val_dataloader=loader('validation'),
            test_dataloader=None,
        )

    def change_masks(self, change):
        for path in self.masks:
            Image.fromarray(change(np.array(Image.open(path)))).save(path)


@pytest.fixture
def broken(drawn, tmp_path):
    return BrokenAde(drawn, tmp_path)


@pytest.mark.parametrize('fast', [True, False])
def test_a_valid_set_has_no_errors(broken, fast):
    assert all('never occur' in finding.problem for finding in broken.findings(fast))


def _not_reduced(s):
    s.train.reduce_zero_label = False
    s.change_masks(lambda mask: np.where(mask == 9, 10, mask).astype(np.uint8))


def _too_few_classes(s):
    s.change_masks(lambda mask: np.where(mask == 1, 14, mask).astype(np.uint8))


def _binary(s):
    s.change_masks(lambda mask: np.where(mask > 4, 255, 0).astype(np.uint8))


def _all_ignored(s):
    s.change_masks(lambda mask: np.zeros_like(mask))


def _color(s):
    s.change_masks(lambda mask: np.stack([mask * 20, mask, mask], axis=-1).astype(np.uint8))


def _palette(s):
    s.train.pipeline[1].imdecode_backend = 'cv2'
    for path in s.masks:
        image = Image.open(path).copy()
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 0)])
        image.save(path)


def _deep(s):
    s.change_masks(lambda mask: mask.astype(np.uint16) + 1000)


def _resized(s):
    s.change_masks(lambda mask: mask[:-8])


def _rotated(s):
    path = s.root / 'images/training' / f'{s.masks[0].stem}.jpg'
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(path, exif=exif)


def _mask_lost(s):
    s.masks[2].unlink()


def _image_lost(s):
    (s.root / 'images/training' / f'{s.masks[2].stem}.jpg').unlink()


def _suffix(s):
    s.train.img_suffix = '.jpeg'


def _folder(s):
    s.train.data_prefix.seg_map_path = 'labels'


def _broken(s):
    s.masks[1].write_bytes(s.masks[1].read_bytes()[:80])


def _never(s):
    s.change_masks(lambda mask: np.where(mask == 10, 0, mask).astype(np.uint8))


def _head(s):
    s.cfg.model.auxiliary_head[0].num_classes = 150


def _fixed_classes(s):
    s.train.type = 'ADE20KDataset'


def _contradiction(s):
    s.train.pipeline[1].reduce_zero_label = False


def _overlap(s):
    s.cfg.val_dataloader.dataset.data_prefix = s.train.data_prefix


def _first_is_zero(s):
    s.change_masks(lambda mask: np.where(mask == 0, 0, mask - 1).astype(np.uint8))


CASES = [
    (
        _not_reduced,
        'error',
        'labels 10 are out of range',
        'val_dataloader.dataset.reduce_zero_label=True if 0 means unlabeled',
    ),
    (_too_few_classes, 'error', 'reduce_zero_label=True allow 1...10', 'name 14 classes'),
    (_binary, 'error', '255 means ignored', 'mask[mask == 255] = 1'),
    (_all_ignored, 'error', 'every pixel is ignored', 'reduce_zero_label=False'),
    (_color, 'error', 'several channels: mode RGB', 'class index instead of its color'),
    (_palette, 'error', 'masks with a palette', "imdecode_backend='pillow'"),
    (_deep, 'error', 'outside 0...255', '8-bit PNG'),
    (_resized, 'error', 'masks of another size than their image', 'nearest-neighbor'),
    (_rotated, 'error', 'masks of another size than their image', 'nearest-neighbor'),
    (_mask_lost, 'error', 'images without a mask (1 of 6)', 'add the masks'),
    (_image_lost, 'warning', 'masks without an image', 'add the images'),
    (_suffix, 'error', "no files with suffix '.jpeg'", "train_dataloader.dataset.img_suffix='.jpg'"),
    (_folder, 'error', 'no such folder', '--data-root'),
    (_broken, 'error', 'unreadable masks or images: image file is truncated (1 of 6)', 'replace'),
    (_never, 'warning', 'classes that never occur in the train masks: mug', 'remove them'),
    (_head, 'error', 'the head has 150 classes, the train set has 10', 'model.auxiliary_head.0.num_classes=10'),
    (_fixed_classes, 'error', 'defines its own classes', "type='BaseSegDataset'"),
    (_contradiction, 'error', 'this step False', 'remove it from this step'),
    (_overlap, 'warning', 'val images that are also training images (6 of 6)', 'val_dataloader.dataset'),
    (_first_is_zero, 'warning', '0 may be a class', 'reduce_zero_label=False'),
]


@pytest.mark.parametrize(('damage', 'severity', 'problem', 'fix'), CASES, ids=[case[0].__name__ for case in CASES])
def test_each_damage_is_reported_with_its_fix(broken, damage, severity, problem, fix):
    damage(broken)
    broken.assert_reports(severity, problem, fix)


def test_masks_with_a_palette_are_valid_if_their_indices_are_read(broken):
    _palette(broken)
    del broken.train.pipeline[1]['imdecode_backend']
    assert not [finding for finding in broken.findings() if finding.severity == 'error']


def test_every_value_means_the_class_that_mmseg_loads(tmp_path):
    """Values 0 to 255, all classes of ADE20K and some in another order, with and without reduce_zero_label."""
    from mmseg.datasets import ADE20KDataset, LoadAnnotations

    from mmplugin.data.check_seg import _class_of_value
    from mmplugin.data.splits import Split

    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / 'all.png')
    known = ADE20KDataset.METAINFO['classes']
    for reduce in (True, False):
        for classes in (known, (known[7], known[2], known[100])):
            label_map = ADE20KDataset.get_label_map(classes)
            results = dict(
                seg_map_path=str(tmp_path / 'all.png'), label_map=label_map, reduce_zero_label=reduce, seg_fields=[]
            )
            loaded = LoadAnnotations()(results)['gt_seg_map'].ravel()
            split = Split('train', 'key', dict(reduce_zero_label=reduce), ADE20KDataset, tuple(classes))
            np.testing.assert_array_equal(_class_of_value(split), loaded)


def test_a_label_out_of_range_stops_training_before_the_loss():
    from mmseg.structures import SegDataSample

    hook, head = LabelRangeHook(), torch.nn.Module()
    head.num_classes, head.ignore_index = 10, 255
    model = torch.nn.Module()
    model.decode_head = head
    runner = type('Runner', (), {'model': model})()
    hook.before_train(runner)

    def batch(*labels):
        sample = SegDataSample(metainfo=dict(seg_map_path='folder/mask.png'))
        sample.gt_sem_seg = PixelData(data=torch.tensor([[labels]]))
        return dict(inputs=[], data_samples=[sample])

    hook.before_train_iter(runner, 0, batch(0, 9, 255))
    with pytest.raises(UserError, match=r'folder/mask.png has the label 10 .*0 to 9.*check-data'):
        hook.before_train_iter(runner, 0, batch(3, 10, 255))
