"""Generated parts of a page: the text between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def read_between(page: Path, name: str) -> str:
    """Return a generated part.

    Raises:
        ValueError: If the page does not have both markers, once each.
    """
    return _split(page, name)[1].strip()


def replace_between(page: Path, name: str, text: str) -> None:
    """Replace a generated part and leave the rest of the page as it is.

    Raises:
        ValueError: If the page does not have both markers, once each.
    """
    before, _, after = _split(page, name)
    page.write_text(f'{before}\n\n{text}\n\n{after}', encoding='utf-8')


def _split(page: Path, name: str) -> list[str]:
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    parts = re.split(f'(?<={begin})|(?={end})', page.read_text(encoding='utf-8'))
    if len(parts) != 3:
        raise ValueError(f'{page} must have the lines {begin} and {end}, once each')
    return parts
