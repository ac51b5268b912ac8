"""A file is read in a process of its own first, which may run out of memory, crash or hang."""

import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from faults.more_hostile_files import DAMAGED

from mmplugin.convert import checkpoint_io, untrusted
from mmplugin.errors import UserError


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ('read', 'message'),
    [
        (lambda: bytearray(1 << 40), 'more memory than its 4 bytes'),
        (lambda: torch.zeros(1 << 40), 'more memory than its 4 bytes'),
        (_crash, r'crashes Python \(SIGSEGV\)'),
        (lambda: time.sleep(60), 'more than 0 seconds'),
    ],
)
def test_what_no_file_may_do_is_refused(read, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(untrusted, 'LONGEST_READ', 0.3)
    path = tmp_path / 'a.pth'
    path.write_bytes(b'1234')
    with pytest.raises(UserError, match=f'refused: reading it .*{message}'):
        untrusted.check_memory(path, read)


def test_a_program_may_ignore_how_its_processes_end(tmp_path: Path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'1234')
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        untrusted.check_memory(path, lambda: None)
        with pytest.raises(UserError, match='more memory than its 4 bytes'):
            untrusted.check_memory(path, lambda: bytearray(1 << 40))
        with pytest.raises(UserError, match='crashes Python'):
            untrusted.check_memory(path, _crash)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_other_errors_are_left_to_the_reader(tmp_path: Path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'1234')
    untrusted.check_memory(path, lambda: 1 / 0)


def test_other_threads_can_take_memory_while_a_file_is_refused(tmp_path: Path):
    """A thread of pytest-xdist that could not take memory ended its process, and so could a thread of a server."""
    DAMAGED['bytearray'](tmp_path / 'a.pth')
    done, failed = threading.Event(), []

    def other() -> None:
        while not done.is_set():
            try:
                bytearray(1 << 30)
            except MemoryError as error:
                failed.append(error)

    thread = threading.Thread(target=other)
    before = resource.getrlimit(resource.RLIMIT_AS)
    thread.start()
    try:
        for _ in range(3):
            with pytest.raises(UserError, match='more memory'):
                checkpoint_io.read(tmp_path / 'a.pth')
    finally:
        done.set()
        thread.join()
    assert not failed
    assert resource.getrlimit(resource.RLIMIT_AS) == before
