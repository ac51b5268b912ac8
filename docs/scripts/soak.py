"""Watch memory, threads and file handles of a long training and of many predictions in one process.

    python docs/scripts/soak.py [--minutes 30] [--predictions 500] [--write]

The training is that of the built-in set, with two worker processes, checkpoints and validations. The predictions are
those of ``mmplugin.Predictor`` with the trained model, of images of random sizes. After the first half, in which caches
fill, nothing may grow: see ``BOUNDS``. ``--write`` updates docs/images/soak.svg, docs/data/soak.json and
docs/reliability.md. The exit code is 1 if anything grows.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from markers import ROOT, replace_between

from mmplugin.cpu_threads import allowed_cores
from mmplugin.tables import Table, show

CONFIG = 'retinanet_evit_m0'
SIDES = 64, 512  # of the images to predict
SECONDS = 1  # between two samples
SECTION = 20  # samples, whose median ignores moments in which processes start or memory is about to be freed
# What the line through the second half may rise by in that half: a share of the mean, and a number.
BOUNDS = {'memory, MB': (0.03, 0.0), 'threads': (0.0, 0.5), 'file handles': (0.0, 0.5)}
PREDICT = 'predict'  # the argument of the process that predicts


@dataclass
class Watch:
    """Samples of one process and its children.

    Args:
        name: What the process does.
        minutes: Time of each sample, from the start.
        samples: Values of each quantity of ``BOUNDS``.
    """

    name: str
    minutes: list[float] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in BOUNDS})

    def second_half(self, quantity: str) -> tuple[float, float, float]:
        """Return the mean of the second half, by how much its line rises, and by how much it may.

        The values are the medians of sections.
        """
        count = max(4, len(self.minutes) // SECTION)
        sections = np.array_split(np.array(self.samples[quantity]), count)[count // 2 :]
        times, values = np.arange(len(sections)), np.array([np.median(section) for section in sections])
        rise = float(np.polyfit(times, values, 1)[0] * times[-1])
        share, number = BOUNDS[quantity]
        return float(values.mean()), rise, share * float(values.mean()) + number

    def rows(self) -> list[list[str]]:
        """Return a row for each quantity."""
        found = []
        for quantity, values in self.samples.items():
            mean, rise, bound = self.second_half(quantity)
            length = f'{self.minutes[-1]:.0f} min, {len(values)} samples'
            found.append(
                [self.name, length, quantity, f'{max(values):.0f}', f'{mean:.1f}', f'{rise:+.1f}', f'{bound:.1f}']
            )
        return found

    def is_flat(self) -> bool:
        """Whether nothing rises by more than it may."""
        return all(rise <= bound for _, rise, bound in map(self.second_half, BOUNDS))


def family(pid: int) -> list[Path]:
    """Return the folders in /proc of a process and of all its descendants."""
    found, waiting = [], [Path('/proc', str(pid))]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += [
            Path('/proc', child) for task in process.glob('task/*/children') for child in task.read_text().split()
        ]
    return found


def sample(pid: int) -> dict[str, float]:
    """Return memory, threads and file handles.

    Memory that the processes share is counted once (PSS). Pages of files, such as libraries, are omitted: their share
    changes whenever another program on the machine loads or releases the same file.
    """
    total = dict.fromkeys(BOUNDS, 0.0)
    for process in family(pid):
        lines = (process / 'smaps_rollup').read_text().splitlines()
        own = [int(line.split()[1]) for line in lines if line.startswith(('Pss_Anon:', 'Pss_Shmem:'))]
        total['memory, MB'] += sum(own) / 1024
        total['threads'] += len(list((process / 'task').iterdir()))
        total['file handles'] += len(list((process / 'fd').iterdir()))
    return total


def watch(name: str, process: subprocess.Popen, until: Callable[[Watch], bool]) -> Watch:
    """Take samples until the process ends or has been watched for long enough."""
    result, started = Watch(name), time.monotonic()
    while process.poll() is None and not until(result):
        try:
            found = sample(process.pid)
        except OSError:  # a process that ended while it was read
            continue
        result.minutes.append((time.monotonic() - started) / 60)
        for quantity, value in found.items():
            result.samples[quantity].append(value)
        time.sleep(SECONDS)
    return result


def train(folder: Path, minutes: float) -> Watch:
    """Train for so many minutes, counted from the first epoch, and stop with SIGTERM."""
    work_dir = folder / 'work'
    command = [sys.executable, '-m', 'mmplugin', 'train', CONFIG, '--mini', '--work-dir', str(work_dir), '--no-report']
    changes = {
        'train_cfg.max_epochs': 10_000,
        'train_cfg.val_interval': 5,
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
    }
    command += ['--cfg-options', *(f'{key}={value}' for key, value in changes.items())]
    with (folder / 'log.txt').open('w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None and not list(work_dir.glob('epoch_*.pth')):
            time.sleep(SECONDS)
        result = watch('training', process, lambda seen: bool(seen.minutes) and seen.minutes[-1] >= minutes)
        process.send_signal(signal.SIGTERM)
        if process.wait() != 128 + signal.SIGTERM:
            raise SystemExit(
                f'the training ended with {process.returncode}: {(folder / "log.txt").read_text()[-2000:]}'
            )
    return result


def predict(work_dir: Path, count: int) -> Watch:
    """Predict so many images in one process."""
    command = [sys.executable, __file__, PREDICT, str(work_dir), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()  # the model is built
    result = watch('predictions', process, lambda seen: False)
    if process.wait():
        raise SystemExit(f'the predictions ended with {process.returncode}')
    return result


def predict_in_this_process(work_dir: Path, count: int) -> None:
    """Build the model of a training, and predict random images of random sizes."""
    from mmplugin import Predictor
    from mmplugin.config_edits import dicts
    from mmplugin.engine.config import load_config
    from mmplugin.engine.predictor import find_in_work_folder

    config, checkpoint = find_in_work_folder(work_dir)
    cfg = load_config(config)
    for step in dicts(cfg.test_dataloader):
        if step.get('type') == 'Resize':  # each image keeps its size
            del step['scale']
            step['scale_factor'] = 1.0
    predictor = Predictor(cfg, checkpoint)
    sys.stdout.write('ready\n')
    sys.stdout.flush()
    draw = np.random.default_rng(0)
    for _ in range(count):
        height, width = draw.integers(*SIDES, 2)
        predictor(draw.integers(256, size=(height, width, 3), dtype=np.uint8))


def plot(watches: Sequence[Watch], path: Path) -> None:
    """Draw one column per process, one row per quantity; the second half is shaded."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    ink = '#888888'  # readable on light and on dark pages
    figure, grid = plt.subplots(len(BOUNDS), len(watches), figsize=(9, 5), sharex='col', squeeze=False)
    for column, seen in zip(grid.T, watches, strict=True):
        step = max(1, len(seen.minutes) // 300)  # as many points as the image has room for
        for axes, quantity in zip(column, BOUNDS, strict=True):
            axes.plot(seen.minutes[::step], seen.samples[quantity][::step], linewidth=1.2)
            axes.axvspan(seen.minutes[len(seen.minutes) // 2], seen.minutes[-1], color=ink, alpha=0.12)
            axes.set_ylim(0, 1.15 * max(seen.samples[quantity]))
            axes.set_ylabel(quantity, color=ink)
            axes.tick_params(colors=ink)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ('left', 'bottom'))
                spine.set_color(ink)
        column[0].set_title(seen.name, color=ink, fontsize=11, loc='left')
        column[-1].set_xlabel('minutes', color=ink)
    figure.savefig(path, transparent=True, bbox_inches='tight')


def main(argv: Sequence[str]) -> int:
    """Watch, print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30, help='of training (default: %(default)s)')
    parser.add_argument('--predictions', type=int, default=500, help='number of images (default: %(default)s)')
    parser.add_argument('--write', action='store_true', help='update docs/reliability.md and its plot')
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        watches = [train(Path(folder), options.minutes), predict(Path(folder, 'work'), options.predictions)]
    head = ['process', 'watched for', 'quantity', 'highest', 'mean, second half', 'rise in second half', 'allowed rise']
    table = Table('After the first half, nothing may grow', head, [row for seen in watches for row in seen.rows()])
    show([table])
    flat = all(seen.is_flat() for seen in watches)
    if options.write:
        (ROOT / 'docs/data/soak.json').write_text(json.dumps([asdict(seen) for seen in watches]) + '\n')
        plot(watches, ROOT / 'docs/images/soak.svg')
        how = (
            f'`python docs/scripts/soak.py --minutes {options.minutes:g} --predictions {options.predictions} --write`, '
            f'{date.today()}, CPU cores: {allowed_cores()}, shared with other programs. The samples are one second '
            'apart. Memory is that of the process and its workers: shared pages count once; pages of files, which '
            f'other programs share, do not count. A line is fitted to the medians of {SECTION} samples each of '
            f'the second half; {"nothing rises" if flat else "something rises"} by more than is allowed.'
        )
        image = '![Memory, threads and file handles over time](images/soak.svg)'
        replace_between(ROOT / 'docs/reliability.md', 'soak', f'{table.markdown()}\n\n{image}\n\n{how}')
    return int(not flat)


if __name__ == '__main__':
    if sys.argv[1:2] == [PREDICT]:
        predict_in_this_process(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
