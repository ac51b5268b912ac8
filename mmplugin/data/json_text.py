"""JSON whose objects have each key once."""

import json
from collections import Counter
from typing import Any

from mmplugin.text import some


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; of a key that occurs twice in an object, ``json.loads`` would silently keep the last value.

    Raises:
        ValueError: If the text is not JSON, or a key occurs twice.
    """
    problems: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = some(ascii(name) for name in found if counts[name] > 1)
            owner = found.get('id', found.get('label'))
            problems.append(twice if owner is None else f'{twice} of {owner!a}')
        return found

    content = json.loads(text, object_pairs_hook=build)
    if problems:
        raise ValueError(f'keys that occur twice in an object, so one value would be lost: {some(problems)}')
    return content
