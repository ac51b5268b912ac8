"""Which images are for training, for validation and for testing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from mmplugin.errors import UserError

SPLIT_NAMES = {
    'train': ('train', 'training', 'train2017'),
    'val': ('val', 'valid', 'validation', 'val2017'),
    'test': ('test', 'testing', 'test2017'),
}
VAL_SHARE = 0.2  # of the images, if the data has no validation set
SEED = 0  # of the drawn split; not the seed of the training, so that all trainings of the data have the same split


def split_of_folder(name: str) -> str:
    """Return the split that a folder in a relative path names; an empty string if none does."""
    folders = [part.lower() for part in name.split('/')[:-1]]
    for folder in reversed(folders):
        for split, words in SPLIT_NAMES.items():
            if folder in words:
                return split
    return ''


def draw(names: Iterable[str], share: float = VAL_SHARE) -> set[str]:
    """Draw the validation images among ``names``.

    The images with the smallest digest of their name are drawn, so the result does not depend on the order of the
    names, and a few more images change it little.
    """
    order = sorted(names, key=lambda name: sha256(f'{SEED} {name}'.encode('utf-8', 'surrogateescape')).digest())
    if len(order) < 2:
        raise UserError(f'{len(order)} annotated image: training and validation need at least two')
    count = min(max(1, round(share * len(order))), len(order) - 1)
    return set(order[:count])


def arrange(
    items: Sequence[Any], split_of: Callable[[Any], str], name_of: Callable[[Any], str], share: float = VAL_SHARE
) -> tuple[dict[str, list], str]:
    """Distribute items over ``train``, ``val`` and, if the data has one, ``test``.

    A missing validation set is drawn from the training images, never from the test images.

    Args:
        items: Images in any form.
        split_of: Returns what the data says about an item: a split, or an empty string.
        name_of: Returns the name of the item's image.
        share: Share of the images to draw for validation.

    Returns:
        The items by split, and what was done, in one line.
    """
    splits: dict[str, list] = {name: [] for name in ('train', 'val', 'test', '')}
    for item in items:
        splits[split_of(item)].append(item)
    unassigned = splits.pop('')
    note = ''
    if not splits['train'] and not splits['val']:
        splits['train'], unassigned = unassigned, []
    if not splits['train']:
        raise UserError(f'{len(splits["val"])} validation images, but no training images; add a folder or list of them')
    if not splits['val']:
        drawn = draw(map(name_of, splits['train']), share)
        splits['val'] = [item for item in splits['train'] if name_of(item) in drawn]
        splits['train'] = [item for item in splits['train'] if name_of(item) not in drawn]
        note = f', validation images drawn by their names (seed {SEED}, --val-share {share:g})'
    if not splits['test']:
        del splits['test']
    counts = ', '.join(f'{len(found)} {name}' for name, found in splits.items())
    unused = f'; {len(unassigned)} images are in none of them and not used' if unassigned else ''
    return splits, f'{counts} images{note}{unused}'


def by_lists(lists: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return the split by name; a name in several lists is never trained on."""
    return {name: split for split in ('train', 'val', 'test') for name in lists.get(split, ())}
