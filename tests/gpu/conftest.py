"""The GPU tests skip without a device; float32 is exact in them."""

import os

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A hook, not a fixture, so that all skips are one line of the report.
    if 'MMPLUGIN_TEST_DEVICE' not in os.environ and not torch.cuda.is_available():
        pytest.skip('no CUDA GPU; MMPLUGIN_TEST_DEVICE=cpu runs what a CPU can run')


@pytest.fixture(autouse=True)
def _float32_is_not_rounded_to_tf32(monkeypatch):
    # cuDNN rounds the inputs of float32 convolutions to 10 bits by default.
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
