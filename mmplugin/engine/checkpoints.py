"""Find the last checkpoint of a work folder."""

import re
from pathlib import Path

from mmplugin.errors import UserError


def find_last_checkpoint(work_dir: str | Path) -> Path:
    """Return the checkpoint with the most iterations or epochs; ``best_*`` files are ignored."""
    found = {}
    for path in Path(work_dir).glob('*.pth'):
        match = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
        if match:
            found[int(match[1])] = path
    if not found:
        raise UserError(f'--resume: no epoch_N.pth or iter_N.pth in {work_dir}; omit --resume, or name a file')
    return found[max(found)]
