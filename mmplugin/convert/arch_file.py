"""Architectures in JSON files, as ``mmplugin search`` writes them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError
from mmplugin.files import reason, require_file

MOST_BYTES, MOST_PARAMETERS = 1_000_000, 1e9


def read_arch(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the family and the arch of a file.

    Args:
        path: File with ``{"type": "EfficientFormerV2", "arch": {...}}``, or the arch alone if only one family can build
            it.
    """
    path = Path(path)
    try:
        if (size := require_file(path).st_size) > MOST_BYTES:
            raise UserError(f'{path} has {size:,} bytes; an arch takes less than {MOST_BYTES:,}')
        content = json.loads(path.read_text(encoding='utf-8'))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path} cannot be read: {reason(error)}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not JSON: {error}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}; expected an object with the keys of an arch')
    if 'type' not in content:
        family = _only_family(path, content)
        _require_usable(path, FAMILIES[family].explicit(content))
        return family, content
    names = {cls.__name__: family for family, cls in FAMILIES.items()}
    if content['type'] not in list(names) or not isinstance(content.get('arch'), dict | str):
        raise UserError(f'{path}: expected a type of {", ".join(names)}, and an arch')
    family = names[content['type']]
    try:
        arch = FAMILIES[family].explicit(content['arch'])
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    _require_usable(path, arch)
    return family, arch


def _require_usable(path: Path, arch: dict[str, Any]) -> None:
    """Refuse a network that would take gigabytes, by its convolutions between stages and its MLPs."""
    widths = arch['widths']
    count = sum(9 * width * wider for width, wider in pairwise(widths))
    count += sum(2 * width * size for width, sizes in zip(widths, arch['hidden'], strict=True) for size in sizes)
    if count > MOST_PARAMETERS:
        raise UserError(
            f'{path}: this network has more than {count / 1e9:.0f} billion parameters; allowed is less than one billion'
        )


def _only_family(path: Path, arch: dict[str, Any]) -> str:
    problems = {}
    for family, cls in FAMILIES.items():
        try:
            cls.check_arch(arch)
        except UserError as error:
            problems[family] = str(error)
    fitting = [family for family in FAMILIES if family not in problems]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f'{path}: {" and ".join(fitting)} can build this arch; add "type": the name of the class')
    raise UserError(f'{path}: no family can build this arch:\n' + '\n'.join(problems.values()))
