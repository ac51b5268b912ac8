"""Folders of images: which layouts are read, and what is said about others."""

from pathlib import Path

import pytest
from PIL import Image

from mmplugin import cli
from mmplugin.classification.folders import read_folders, write_lists
from mmplugin.errors import UserError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_per_class_and_split(tmp_path):
    root = make(tmp_path, 'train/cat/1.jpg', 'train/cat/deep/2.PNG', 'train/ant/3.JPEG', 'valid/cat/4.jpg')
    listing = read_folders(root)
    assert listing.classes == ('ant', 'cat')
    assert listing.images['train'] == [('train/ant/3.JPEG', 0), ('train/cat/1.jpg', 1), ('train/cat/deep/2.PNG', 1)]
    assert listing.images['val'] == [('valid/cat/4.jpg', 1)]  # a class may be missing there; labels stay


def test_validation_images_are_drawn_in_every_class(tmp_path):
    root = make(tmp_path, *(f'{name}/{i}.jpg' for name in ('a', 'b') for i in range(10)), '.hidden/x.jpg', 'notes.txt')
    listing = read_folders(root, val_share=0.3)
    assert listing.classes == ('a', 'b')
    assert [label for _, label in listing.images['val']] == [0] * 3 + [1] * 3
    assert not set(listing.images['train']) & set(listing.images['val'])
    assert read_folders(root, val_share=0.3).images == listing.images


@pytest.mark.parametrize(
    ('file', 'text'),
    [
        ('val.txt', 'v1.JPEG 1\nv2.JPEG 0\n'),
        ('meta/val.txt', 'v1.JPEG n02\nv2.JPEG n01\n'),
        ('LOC_val_solution.csv', 'ImageId,PredictionString\nv1,n02 1 2 3 4\nv2,n01 5 6 7 8 n01 9 9 9 9\n'),
    ],
)
def test_imagenet_with_its_validation_images_in_one_folder(tmp_path, file, text):
    base = 'ILSVRC/Data/CLS-LOC/' if file.endswith('csv') else ''
    names = ('train/n01/a.JPEG', 'train/n02/b.JPEG', 'val/v1.JPEG', 'val/v2.JPEG', 'test/t.JPEG')
    root = make(tmp_path, *(base + name for name in names), file)
    (root / file).write_text(text)
    listing = read_folders(root)
    assert listing.images['val'] == [(f'{base}val/v1.JPEG', 1), (f'{base}val/v2.JPEG', 0)]
    assert 'test' not in listing.images


def test_lists_keep_names_with_spaces(tmp_path):
    root = make(tmp_path / 'data', 'train/a b/1 2.jpg', 'train/c/3.jpg', 'val/c/4.jpg')
    paths = write_lists(read_folders(root), tmp_path / 'lists')
    assert paths['train'].read_text() == 'train/a b/1 2.jpg 0\ntrain/c/3.jpg 1\n'


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['1.jpg', '2.jpg'], r'1\.jpg lies outside the folders of classes; expected ROOT/train/CLASS'),
        (['train/a/1.jpg', 'val/a/1.jpg'], 'has one class, a'),
        (['train/a/1.jpg', 'train/b/1.txt', 'val/a/1.jpg'], r'1 folders in .*train have no images \(.*b.*\)'),
        (['train/a/1.jpg', 'train/b/1.jpg', 'val/c/1.jpg'], 'classes without training images: .*c'),
        (['train/a/1.jpg', 'train/b/1.jpg', 'val/1.jpg'], r'no folders of classes, and .* none of val\.txt'),
        (['val/a/1.jpg', 'val/b/1.jpg'], 'has val, but no train'),
        (['a/1.jpg', 'b/1.jpg'], 'class a has 1 image'),
    ],
)
def test_wrong_folders_are_explained(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        read_folders(make(tmp_path, *names))


def test_chosen_classes(tmp_path):
    root = make(tmp_path, *(f'{split}/{name}/1.jpg' for split in ('train', 'val') for name in 'abc'))
    assert read_folders(root, ['c', 'a']).images['val'] == [('val/a/1.jpg', 0), ('val/c/1.jpg', 1)]
    with pytest.raises(UserError, match=r'has no folder .*d.*; its folders: a, b, c'):
        read_folders(root, ['d'])


def test_the_check_of_a_clean_set_ends_well(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (8, 8)).save(tmp_path / 'data' / name / f'{i}.png')
    words = [
        'check-data',
        'evit_m0_imagenet',
        '--data-root',
        str(tmp_path / 'data'),
        '--work-dir',
        str(tmp_path / 'work'),
    ]
    assert cli.main(words) == 0
