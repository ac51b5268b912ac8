"""Files that once provoked a new outcome are read again, and the fuzzer notices every kind of failure."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import run
from fuzz.run import TARGETS
from fuzz.targets import Failure, Target, check_text

from mmplugin.convert import untrusted


def test_every_stored_file_is_read_or_refused():
    paths = sorted(run.CORPUS.glob('*.gz'))
    assert {path.name.partition('.')[0] for path in paths} == set(TARGETS)
    assert sum(path.stat().st_size for path in paths) < 300_000
    command = [sys.executable, '-W', 'ignore', run.__file__, '--replay', *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == f'{len(paths)} files read, none failed\n', result.stdout + result.stderr


@pytest.mark.parametrize(
    ('read', 'message'),
    [
        (lambda content: 1 / 0, 'ZeroDivisionError'),
        (lambda content: os.kill(os.getpid(), 9), 'the process died with status 9'),
        (lambda content: os.system('true'), 'the file was executed'),
        (
            lambda content: untrusted.check_memory(Path(run.__file__), lambda: os.system('true')),
            r"executed: ['os.system']",
        ),
        (lambda content: os.fork() or os._exit(0), 'the file was executed'),
        (lambda content: os.mkdir(run.CANARY), 'the file was executed'),
        (lambda content: time.sleep(60), 'took more than 1 seconds'),
        (lambda content: len(b'x' * (1 << 28)), ' MB'),
        (lambda content: check_text('\x1b[31m'), 'control characters'),
    ],
)
def test_failures_are_noticed(monkeypatch, read, message):
    monkeypatch.setattr(run, 'SECONDS', 1)
    monkeypatch.setattr(run, 'MEMORY', 1 << 27)
    monkeypatch.setitem(TARGETS, 'coco', Target(bytes, read))
    outcome, details = run.read_in_child('coco', b'')
    assert outcome == run.FAILED
    assert message in details


def test_a_message_is_no_failure(monkeypatch):
    monkeypatch.setitem(TARGETS, 'coco', Target(bytes, lambda content: 'is damaged'))
    assert run.read_in_child('coco', b'') == ('read', 'is damaged')
    with pytest.raises(Failure):
        check_text('\r')
