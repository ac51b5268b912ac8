"""Files appear complete or not at all."""

import os
from pathlib import Path

import pytest

from mmplugin.files import AtomicBackend


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / 'epoch_1.pth'
    AtomicBackend().put(b'old', target)

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        AtomicBackend().put(b'new and broken', target)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']
    assert target.read_bytes() == b'old'
