"""The second set of hostile files, tried through every way in."""

import resource
from pathlib import Path

import numpy as np
import pytest
from faults.conftest import Tiny
from faults.more_hostile_files import CODE, DAMAGED, DAMAGED_SAFETENSORS, archive
from faults.test_hostile_files import FRAMEWORK, WAYS

from mmplugin.errors import UserError

QUICK = 'train --resume'  # the way in that checks most
DOORS = [way if way == QUICK else pytest.param(way, marks=pytest.mark.faults) for way in WAYS]
LARGEST_MESSAGE = 3000  # characters


def _attempt(way: str, tiny: Tiny, path: Path, folder: Path) -> str | None:
    """Return the message, or None if the file was accepted."""
    try:
        WAYS[way](tiny, path, folder)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize('way', DOORS)
def test_no_opcode_runs_code(way: str, tiny: Tiny, tmp_path: Path):
    for name, pickled in CODE.items():
        canary = tmp_path / 'canary'
        for form in ('zip', 'bare'):
            path = tmp_path / f'{name.replace(" ", "_")}_{form}.pth'
            archive(pickled(canary), path) if form == 'zip' else path.write_bytes(pickled(canary))
            message = _attempt(way, tiny, path, tmp_path)
            assert message is not None, f'{name} was accepted'
            assert path.name in message
            assert not canary.exists(), name


@pytest.mark.parametrize('way', DOORS)
def test_damage_is_one_short_message_and_takes_no_memory(way: str, tiny: Tiny, tmp_path: Path):
    files = [(name, 'pth', write) for name, write in DAMAGED.items()]
    files += [(name, 'safetensors', write) for name, write in DAMAGED_SAFETENSORS.items()]
    one = np.array([1.0]).tobytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = []
    for name, suffix, write in files:
        path = tmp_path / f'{name}.{suffix}'
        write(path)
        message = _attempt(way, tiny, path, tmp_path)
        if message is None:
            accepted.append(name)
            continue
        assert path.name in message, name
        assert message.isprintable(), name
        assert len(message) < LARGEST_MESSAGE, name
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < 500, f'{name}: {grown:.0f} MB'
        assert np.array([1.0]).tobytes() == one, f'{name} changed the numbers of the process'
    assert accepted == [] or way in FRAMEWORK, accepted
    assert not list(tmp_path.parent.glob('escaped*'))
