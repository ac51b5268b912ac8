"""What makes trainings in tests fast."""

import pytest
from tiny_training import use_tiny_sets


@pytest.fixture(scope='session')
def tiny_sets(tmp_path_factory: pytest.TempPathFactory):
    """Make ``--mini`` use tiny sets, and do not format configs."""
    with use_tiny_sets(tmp_path_factory.mktemp('sets')), pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield
