"""Write the table of runtimes of docs/deploy.md, and a plot for each runtime, from what the benchmark measured.

Run on an idle machine, from the root of the repository, where all runtimes and timm are installed::

    R='torch onnxruntime openvino executorch'
    M='Intel Xeon, one core'
    mmplugin benchmark v2_s2 v1_l1 evit_m4 --runtime $R onnxruntime+dynamic --timm --size 224 512 800x1333 --cores 1 \
        --machine "$M" --files work_dirs/files --json docs/data/runtimes.json
    mmplugin benchmark all --runtime $R --cores 1 --machine "$M" --files work_dirs/files \
        --json docs/data/runtimes_all.json
    python docs/scripts/deploy_figures.py

Exporting takes most of the time, and does not need an idle machine: run both commands with ``--rounds 1`` first. They
leave the files in ``--files``, where the next run finds them.
"""

from pathlib import Path

from markers import ROOT, replace_between

from mmplugin.benchmark.plot import plot
from mmplugin.benchmark.results import Measurement, Results, conditions, size_text, tables
from mmplugin.tables import Table

PAGE = ROOT / 'docs' / 'deploy.md'
IMAGES = ROOT / 'docs' / 'images'
DATA = ROOT / 'docs' / 'data' / 'runtimes.json'  # three networks at three sizes, with timm's
ALL = ROOT / 'docs' / 'data' / 'runtimes_all.json'  # thirteen networks at one size
SIZE = '512x512'
TITLES = {'fused': 'PyTorch, fused', 'eager': 'PyTorch'}


def summary(results: Results) -> str:
    """Return a table with one row per runtime, one column per network: ms and the ratio to PyTorch, fused."""
    found = {(r.model, r.mode): r for r in results.of('infer') if size_text(r.size) == SIZE}
    names = [model.name for model in results.models if not model.name.startswith('timm:')]
    rows = []
    for prefix in ('', 'timm:'):
        modes = dict.fromkeys(mode for model, mode in found if model.startswith('timm:') == bool(prefix))
        for mode in modes:
            title = f'{prefix.rstrip(":")} {TITLES.get(mode, mode)}'.strip()
            rows.append((title, *(_cell(found.get((prefix + name, mode))) for name in names)))
    return Table('', ('', *names), rows).markdown()


def _cell(record: Measurement | None) -> str:
    if record is None:
        return 'none'
    return f'{record.value:.1f}' + ('' if record.ratio is None else f' ({record.ratio:.2f})')


def details(results: Results) -> str:
    """Return the command, the conditions, and all times in a part that the reader can open."""
    (inference,) = (table for table in tables(results) if table.title == 'Inference')
    return '\n\n'.join(
        [
            f'Measured by\n\n```sh\n{results.meta["command"]}\n```',
            f'<details markdown>\n<summary>All sizes, with quartiles</summary>\n\n{inference.markdown()}\n\n</details>',
            *conditions(results),
        ]
    )


def plots(results: Results, folder: Path) -> str:
    """Plot top-1 over latency for each runtime, and return the images for the page."""
    lines = []
    for mode in dict.fromkeys(record.mode for record in results.of('infer')):
        title, path = TITLES.get(mode, mode), folder / f'frontier-{mode}.png'
        plot(results, path, 'top-1', mode=mode)
        lines.append(f'![Published top-1 of all networks over their latency in {title}](images/{path.name})')
    return '\n\n'.join([*lines, f'Measured by\n\n```sh\n{results.meta["command"]}\n```', *conditions(results)])


if __name__ == '__main__':
    measured = Results.from_json(DATA)
    replace_between(PAGE, 'runtimes', f'{summary(measured)}\n\n{details(measured)}')
    replace_between(PAGE, 'plots', plots(Results.from_json(ALL), IMAGES))
