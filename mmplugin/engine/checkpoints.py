"""Checkpoints that survive a kill at any moment: written beside and renamed, and found by what is there."""

import os
import re
from pathlib import Path

import torch
from mmengine.fileio import LocalBackend, register_backend

from mmplugin.convert.checkpoint_io import allowed_globals
from mmplugin.errors import UserError


class AtomicBackend(LocalBackend):
    """Local files that appear complete or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f'.{target.name}.{os.getpid()}.part')
        try:
            with draft.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)


register_backend('atomic', AtomicBackend, force=True)
# Stock mmengine loads with torch's safe default, which refuses what mmengine itself saved: loss histories, numbers.
torch.serialization.add_safe_globals(allowed_globals())


def find_last_checkpoint(work_dir: str | Path) -> Path:
    """The checkpoint of the most iterations or epochs; those that are named ``best_*`` do not count."""
    found = {}
    for path in Path(work_dir).glob('*.pth'):
        match = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
        if match:
            found[int(match[1])] = path
    if not found:
        raise UserError(f'--resume: no epoch_N.pth or iter_N.pth in {work_dir}; train without --resume, or name a file')
    return found[max(found)]
