"""Show what the path of docs/pretraining.md is worth: an architecture that nobody has published, with and without it.

    python tools/pretraining_proof.py [--seeds 3] [--epochs 4] [--iters 150] [--work-dir work_dirs/pretraining_proof]

For each seed: train the architecture to classify the built-in single objects, convert the average of its weights, and
train RetinaNet on the built-in scenes from them, and from random weights, with equal steps and equal settings. Every
step is a command that a user can type. The warm start of ``--mini`` is left out of both trainings. Each command has one
thread, and as many run at a time as there are cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from mmplugin.engine.config import load_config
from mmplugin.engine.curves import read_scalars
from mmplugin.tables import Table, show

ARCH = dict(
    widths=(24, 32, 64, 128), depths=(2, 2, 3, 2), attention_blocks=1, ratios=((4, 4), (4, 4), (4, 4, 4), (4, 4))
)
TOOLS = Path(__file__).resolve().parent
console = Console(highlight=False)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='AP50 of a new architecture, pretrained and not.')
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds (%(default)s)')
    parser.add_argument('--epochs', type=int, default=4, help='epochs of classification (%(default)s)')
    parser.add_argument('--iters', type=int, default=150, help='iterations of each detector (%(default)s)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/pretraining_proof'))
    return parser.parse_args()


def command(name: str, *arguments: object) -> None:
    """Run a command of mmplugin, and print how long it took."""
    words = [str(argument) for argument in arguments]
    started = time.perf_counter()
    script = 'convert_weights' if name == 'convert' else name
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(TOOLS.parent), os.environ.get('PYTHONPATH', '')]),
    }
    done = subprocess.run(
        [sys.executable, TOOLS / f'{script}.py', *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f'mmplugin {name} {" ".join(words)} failed:\n{done.stdout}{done.stderr}')
    console.print(f'mmplugin {name} {" ".join(words)}   ({time.perf_counter() - started:.0f} s)', soft_wrap=True)


def write_configs(folder: Path) -> None:
    """Write the config of the classifier and that of the detector, both with the architecture."""
    classifier = load_config('v2_s0_imagenet')
    classifier.model.backbone.arch = ARCH
    detector = load_config('retinanet_v2_s0', mini=True, weights='none')
    detector.model.backbone.arch = ARCH
    detector.model.neck.in_channels = list(ARCH['widths'][1:])
    detector.custom_hooks = [
        hook for hook in detector.custom_hooks if hook['type'] not in ('WarmStartHook', 'LayerScaleHook')
    ]
    folder.mkdir(parents=True, exist_ok=True)
    classifier.dump(folder / 'classifier.py')
    detector.dump(folder / 'detector.py')


def best(work_dir: Path, name: str) -> float:
    """Return a metric of the last evaluation of a training."""
    return read_scalars(work_dir)[1][-1][name]


def train_detector(options: argparse.Namespace, seed: int, kind: str, weights: Path | str) -> float:
    """Train the detector and return its AP50."""
    work_dir = options.work_dir / f'seed_{seed}' / kind
    length = ('--iters', options.iters, '--cfg-options', f'train_cfg.val_interval={options.iters}')
    start = ('--weights', weights, '--seed', seed, '--work-dir', work_dir)
    command('train', options.work_dir / 'detector.py', *length, *start, '--no-check', '--no-report')
    return best(work_dir, 'coco/bbox_mAP_50')


def pretrain_and_train(options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Return the top-1 accuracy of the classifier and the AP50 of the detector that starts from it."""
    folder = options.work_dir / f'seed_{seed}'
    length = ('--epochs', options.epochs, '--seed', seed, '--work-dir', folder / 'classifier')
    command('train', options.work_dir / 'classifier.py', '--mini', *length, '--no-report')
    backbone = folder / 'backbone.pth'
    command('convert', folder / 'classifier' / f'epoch_{options.epochs}.pth', backbone, '--ema', '--force')
    return best(folder / 'classifier', 'accuracy/top1'), train_detector(options, seed, 'pretrained', backbone)


def main() -> None:
    """Run everything and print the table."""
    options = parse()
    started = time.perf_counter()
    write_configs(options.work_dir)
    seeds = range(options.seeds)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pretrained = [pool.submit(pretrain_and_train, options, seed) for seed in seeds]
        random = [pool.submit(train_detector, options, seed, 'random', 'none') for seed in seeds]
        results = []
        try:
            for seed in seeds:
                top1, average_precision = pretrained[seed].result()
                results.append(dict(seed=seed, top1=top1, pretrained=average_precision, random=random[seed].result()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    (options.work_dir / 'results.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
    names = ('top1', 'pretrained', 'random')
    rows = [(str(row['seed']), *(f'{row[name]:.3f}' for name in names)) for row in results]
    rows.append(('mean', *(f'{statistics.mean(row[name] for row in results):.3f}' for name in names)))
    head = ('seed', 'top-1 %', 'AP50 pretrained', 'AP50 random')
    show([Table(f'RetinaNet, {options.iters} iterations', head, rows)], console)
    console.print(f'{time.perf_counter() - started:.0f} s in total')


if __name__ == '__main__':
    main()
