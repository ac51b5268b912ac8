"""Write where onnxruntime spends its time, in our files and in timm's, into docs/deploy.md.

Run on an idle machine, after the commands of deploy_figures.py, which leave the files in work_dirs/files::

    OMP_NUM_THREADS=1 python docs/scripts/runtime_profile.py

Both files of a network run in turn, with one thread. The time of an operator is the median over the runs of the sum
over its nodes. Recording itself takes time, so these times are larger than those of the benchmark.
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from markers import ROOT, replace_between

from mmplugin.tables import Table

PAGE, FILES = ROOT / 'docs/deploy.md', ROOT / 'work_dirs/files'
NETWORKS, SIZE = ('v2_s2', 'v1_l1', 'evit_m4'), (512, 512)
RUNS, WARM_UP, SHOWN = 30, 5, 0.02  # an operator needs this share of the time of a file to have a row of its own
Times = dict[str, float]


def session_of(path: Path, folder: str) -> onnxruntime.InferenceSession:
    """Open a file with one thread, as the benchmark does, and with a record of all nodes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / path.stem)
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def times_of(record: Path) -> Times:
    """Return milliseconds per operator type and run."""
    runs: list[defaultdict[str, float]] = []
    nodes = [event for event in json.loads(record.read_text()) if event.get('cat') in ('Session', 'Node')]
    for event in sorted(nodes, key=lambda event: event['ts']):
        if event['name'] == 'model_run':
            runs.append(defaultdict(float))
        elif event['name'].endswith('_kernel_time'):
            runs[-1][event['args']['op_name']] += event['dur'] / 1000
    kept = runs[WARM_UP:]
    return {name: median(run[name] for run in kept) for name in set().union(*kept)}


def measure(name: str) -> tuple[Times, Times]:
    """Return the times of our file of a network and of timm's."""
    image = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32)
    label = f'{SIZE[0]}x{SIZE[1]}.onnx'
    with TemporaryDirectory() as folder:
        sessions = [session_of(FILES / f'{prefix}{name}-{label}', folder) for prefix in ('', 'timm_')]
        for _ in range(WARM_UP + RUNS):
            for session in sessions:
                session.run(None, {session.get_inputs()[0].name: image})
        ours, timms = (times_of(Path(session.end_profiling())) for session in sessions)
    return ours, timms


def table(found: dict[str, tuple[Times, Times]]) -> str:
    """Return a table with a row per operator: milliseconds of our file and of timm's."""
    files = [times for pair in found.values() for times in pair]  # ours and timm's in turn
    totals = [sum(times.values()) for times in files]
    names = {
        name
        for times, total in zip(files, totals, strict=True)
        for name, value in times.items()
        if value > SHOWN * total
    }
    shown = {name: [times.get(name, 0.0) for times in files] for name in names}
    rows = sorted(shown.items(), key=lambda item: -sum(item[1]))
    rows.append(('others', [total - sum(part) for total, *part in zip(totals, *shown.values(), strict=True)]))
    rows.append(('all', totals))
    return Table('', ('operator', *found), [(name, *_cells(values)) for name, values in rows]).markdown()


def _cells(values: list[float]) -> list[str]:
    return [f'{ours:.1f} / {timms:.1f}' for ours, timms in zip(values[::2], values[1::2], strict=True)]


if __name__ == '__main__':
    text = table({name: measure(name) for name in NETWORKS})
    replace_between(PAGE, 'profile', text)
