"""What makes trainings in tests fast."""

import pytest

from mmplugin.data.synthetic import ensure_mini_ade, ensure_mini_coco
from mmplugin.engine import mini


@pytest.fixture(scope='session')
def tiny_sets(tmp_path_factory: pytest.TempPathFactory):
    """Make ``--mini`` use eight images for training and two for validation, and do not format configs."""
    root = tmp_path_factory.mktemp('sets')
    drawn = {'ensure_mini_coco': ensure_mini_coco(root, 8, 2), 'ensure_mini_ade': ensure_mini_ade(root, 8, 2)}
    with pytest.MonkeyPatch.context() as patch:
        for name, mini_set in drawn.items():
            patch.setattr(mini, name, lambda _, mini_set=mini_set: mini_set)
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield
