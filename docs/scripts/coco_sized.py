"""Measure time and memory of the data check and of the start of training on a file as large as COCO's.

    python docs/scripts/coco_sized.py [--images 118287] [--boxes 860001] [--masks]

It draws random annotations into a temporary folder; only the first image of each split exists. Then it lets all
annotations name that image, trains with two worker processes, and measures how much memory the processes share.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from soak import family

WIDTH, HEIGHT = 640, 480
CHILD = 'import resource, sys; from mmplugin.cli import main; code = main(sys.argv[1:]); ' + (
    'sys.stderr.write(f"\\nPEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}\\n"); sys.exit(code)'
)


def write(path: Path, images: int, boxes: int, same_image: bool = False) -> None:
    """Write a COCO file with 80 classes, boxes, and a polygon of 20 points for each box.

    Args:
        path: The file.
        images: Number of images.
        boxes: Number of boxes.
        same_image: Whether all images have the file of the first one.
    """
    random = np.random.default_rng(0)
    corner = random.random((boxes, 2)) * (WIDTH * 0.7, HEIGHT * 0.7)
    size = random.random((boxes, 2)) * (WIDTH * 0.25, HEIGHT * 0.25) + 8
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1) / 2 + 0.5
    owner, label = random.integers(images, size=boxes), random.integers(80, size=boxes)
    annotations = [
        {
            'id': i + 1,
            'image_id': int(owner[i]) + 1,
            'category_id': int(label[i]) + 1,
            'bbox': [round(float(value), 2) for value in (*corner[i], *size[i])],
            'area': float(size[i].prod()),
            'iscrowd': 0,
            'segmentation': [np.round(corner[i] + circle * size[i], 2).flatten().tolist()],
        }
        for i in range(boxes)
    ]
    names = [f'{0 if same_image else i:012d}.jpg' for i in range(images)]
    listed = [{'id': i + 1, 'file_name': name, 'width': WIDTH, 'height': HEIGHT} for i, name in enumerate(names)]
    categories = [{'id': i + 1, 'name': f'class {i}'} for i in range(80)]
    path.write_text(json.dumps({'images': listed, 'annotations': annotations, 'categories': categories}))


def memory(pid: int) -> dict[str, float]:
    """Return what a process has in memory, with its share of shared pages, and alone, in MB."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:]
    sizes = {line.split(':')[0]: int(line.split()[1]) / 1024 for line in lines}
    return {'resident': sizes['Rss'], 'share': sizes['Pss'], 'own': sizes['Private_Clean'] + sizes['Private_Dirty']}


def measure_workers(command: list[str], log: Path) -> list[dict[str, float]]:
    """Start a training, wait for its first iterations, and return the memory of its processes, the workers last."""
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None and ' | loss ' not in log.read_text():
            time.sleep(1)
        if process.poll() is not None:
            raise SystemExit(f'the training ended with {process.returncode}: {log.read_text()[-2000:]}')
        found = [memory(int(folder.name)) for folder in family(process.pid)]
        process.send_signal(signal.SIGTERM)
        process.wait()
    return found


def main() -> None:
    """Write the file, run the commands, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=118287)
    parser.add_argument('--boxes', type=int, default=860001)
    parser.add_argument('--masks', action='store_true', help='use Mask R-CNN instead of RetinaNet')
    options = parser.parse_args()
    console, config = Console(), 'maskrcnn_v2_s0' if options.masks else 'retinanet_v2_s0'
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ('annotations', 'train', 'val'):
            (root / name).mkdir()
        write(root / 'annotations/train.json', options.images, options.boxes)
        write(root / 'annotations/val.json', 10, 50, same_image=True)
        for split in ('train', 'val'):
            Image.new('RGB', (WIDTH, HEIGHT)).save(root / split / f'{0:012d}.jpg')
        console.print(f'annotations: {(root / "annotations/train.json").stat().st_size / 1e6:.0f} MB')
        train = ['train', config, '--no-check', '--no-report', '--data-root', folder, '--work-dir', str(root / 'work')]
        train += ['--cfg-options', 'model.backbone.init_cfg=None']
        for words in (['check-data', config, '--fast', '--data-root', folder], train):
            command = [sys.executable, '-c', CHILD, *words]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            peak = done.stderr.rpartition('PEAK ')[2].strip()
            console.print(
                f'{words[0]}: {time.perf_counter() - started:.0f} s, peak {peak} MB, exit code {done.returncode}'
            )
        write(root / 'annotations/train.json', options.images, options.boxes, same_image=True)
        small = ['--batch', '1', '--size', '128x160', '--workers', '2', *train[2:]]
        command = [sys.executable, '-m', 'mmplugin', *train[:2], *small, 'default_hooks.logger.interval=1']
        for i, sizes in enumerate(measure_workers(command, root / 'log.txt')):
            figures = ', '.join(f'{name} {size:.0f} MB' for name, size in sizes.items())
            console.print(f'{f"worker {i}" if i else "main process"}: {figures}')


if __name__ == '__main__':
    main()
