"""Write the table of kills in docs/reliability.md from docs/data/kills*.json.

Run ``python tests/faults/kill.py --kills 50 --seed 0 --out docs/data/kills.json``, then this script.
"""

import json
from collections.abc import Sequence

from markers import ROOT, replace_between

from mmplugin.tables import Table

MOMENTS = {'start': 'before the first iteration', 'training': 'between', 'writing': 'in a checkpoint'}


def rows(results: Sequence[dict]) -> list[list[str]]:
    """Return a row for each kind of training and number of workers, of the trainings that were killed."""
    stories = [story for result in results for story in result['stories'] if story['moments']]
    found = []
    for kind, workers in sorted({(story['config'], story['workers']) for story in stories}):
        chosen = [story for story in stories if (story['config'], story['workers']) == (kind, workers)]
        moments = [moment for story in chosen for moment in story['moments']]
        counts = [str(moments.count(name)) for name in MOMENTS]
        tensors = sum(story['tensors'] for story in chosen)
        differing = sum(story['different'] for story in chosen)
        found.append([kind, str(workers), str(len(chosen)), str(len(moments)), *counts, f'{differing} of {tensors:,}'])
    return found


def main() -> None:
    """Read the files and write the table."""
    results = [json.loads(path.read_text()) for path in sorted((ROOT / 'docs/data').glob('kills*.json'))]
    head = ['training', 'workers', 'trainings', 'kills', *MOMENTS.values(), 'tensors that differ']
    total = sum(result['kills'] for result in results)
    how = f'{total} kills, by ' + ' and '.join(f'`{result["command"]}` ({result["date"]})' for result in results)
    text = (
        f'{Table("", head, rows(results)).markdown()}\n\n{how}. The tensors are those of the model and the optimizer.'
    )
    replace_between(ROOT / 'docs/reliability.md', 'kills', text)


if __name__ == '__main__':
    main()
