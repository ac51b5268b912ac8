"""Measure time and memory of the data check and of the start of training on a file as large as COCO's.

    python docs/scripts/coco_sized.py [--images 118287] [--boxes 860001] [--masks]

It draws random annotations into a temporary folder; there are no image files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

WIDTH, HEIGHT = 640, 480
CHILD = 'import resource, sys; from mmplugin.cli import main; code = main(sys.argv[1:]); ' + (
    'sys.stderr.write(f"\\nPEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}\\n"); sys.exit(code)'
)


def write(path: Path, images: int, boxes: int) -> None:
    """Write a COCO file with 80 classes, boxes, and a polygon of 20 points for each box."""
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
    listed = [{'id': i + 1, 'file_name': f'{i:012d}.jpg', 'width': WIDTH, 'height': HEIGHT} for i in range(images)]
    categories = [{'id': i + 1, 'name': f'class {i}'} for i in range(80)]
    path.write_text(json.dumps({'images': listed, 'annotations': annotations, 'categories': categories}))


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
        write(root / 'annotations/val.json', 10, 50)
        for split in ('train', 'val'):  # the first image of each split must exist, the others are never opened
            (root / split / f'{0:012d}.jpg').write_bytes(b'')
        console.print(f'annotations: {(root / "annotations/train.json").stat().st_size / 1e6:.0f} MB')
        train = ['train', config, '--no-check', '--no-report', '--work-dir', str(root / 'work')]
        for words in (['check-data', config, '--fast'], [*train, '--cfg-options', 'model.backbone.init_cfg=None']):
            command = [sys.executable, '-c', CHILD, *words[:2], '--data-root', folder, *words[2:]]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            peak = done.stderr.rpartition('PEAK ')[2].strip()
            console.print(
                f'{words[0]}: {time.perf_counter() - started:.0f} s, peak {peak} MB, exit code {done.returncode}'
            )


if __name__ == '__main__':
    main()
