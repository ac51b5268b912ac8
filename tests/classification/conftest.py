"""Scopes of mmengine: these tests start without one, and leave none to the tests of other folders."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(scope='module', autouse=True)
def _scopes_stay_as_they_are():
    """mmpretrain has an EfficientFormer of its own, which tests in its scope would get."""
    saved = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(saved)


@pytest.fixture(autouse=True)
def _no_scope():
    DefaultScope._instance_dict.clear()
