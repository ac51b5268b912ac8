"""Fixtures of the GPU tests: skip without a device, exact float32."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _device_is_available():
    if 'MMPLUGIN_TEST_DEVICE' not in os.environ and not torch.cuda.is_available():
        pytest.skip('no CUDA GPU; MMPLUGIN_TEST_DEVICE=cpu runs the parts that a CPU can run')


@pytest.fixture(autouse=True)
def _float32_is_not_rounded_to_tf32(monkeypatch):
    # cuDNN rounds the inputs of float32 convolutions to 10 bits by default.
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
