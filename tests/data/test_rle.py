"""COCO's compressed masks, decoded in NumPy, against runs counted pixel by pixel."""

from itertools import groupby

import numpy as np
from pycocotools import mask as rle

from mmplugin.data.rle import _decode, rle_problem


def test_runs_of_random_masks_equal_those_counted_pixel_by_pixel():
    random = np.random.default_rng(0)
    for scale in [1, 20] * 30:
        height, width = random.integers(1, 60, 2)
        mask = (random.random((height, width)) < random.random()).astype(np.uint8)
        mask = np.asfortranarray(np.kron(mask, np.ones((scale, scale), np.uint8)))
        coded = rle.encode(mask)
        runs = [len(list(group)) for _, group in groupby(mask.flatten(order='F').tolist())]
        expected = runs if mask.flat[0] == 0 else [0, *runs]
        assert _decode(coded['counts']) == expected
        assert rle_problem({'size': list(mask.shape), 'counts': coded['counts'].decode()}, mask.shape[::-1]) == ''
