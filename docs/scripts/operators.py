"""Writes docs/operators.md: each operator, its error against the reference, its time against the compiled one.

    python docs/scripts/operators.py [--compiled PYTHON] [--out docs/operators.md]

PYTHON is an interpreter whose mmcv has compiled operators. Both sides then run the same cases in turn, and the table
gives ratios of medians; without it the time column stays empty.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from mmplugin.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests'))  # the references are the tests' own
import operator_references as reference
from operators_notes import NOTES
from operators_timing import CASES

WORKER = Path(__file__).with_name('operators_timing.py')
ROUNDS = 3


def _input(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _boxes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 50), 1)
    return boxes, torch.rand(count, generator=generator)


def _differentiable(run: Callable, check: Callable, *inputs: torch.Tensor) -> tuple[float, float]:
    """Largest error of the float32 forward and of the gradients, both relative to the largest value."""
    exact = [x.clone().requires_grad_() for x in inputs]
    single = [x.float().requires_grad_() for x in inputs]
    expected, found = check(*exact), run(*single)
    weights = _input(*expected.shape, seed=2)
    expected_grads = torch.autograd.grad((expected * weights).sum(), exact)
    found_grads = torch.autograd.grad((found * weights.float()).sum(), single)

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b).abs().max() / b.abs().max().clamp(min=1))

    return error(found.detach(), expected.detach()), max(map(error, found_grads, expected_grads))


def _selection() -> dict[str, str]:
    """The operators that choose: the same boxes or not."""
    from mmplugin.ops import functions as f

    boxes, scores = _boxes(300)
    dets = torch.cat((boxes, scores[:, None]), 1)

    def verdict(found: object, expected: object) -> str:
        return 'same boxes' if found == expected else 'OTHER BOXES'

    rows = {
        'nms': verdict(f.nms(boxes, scores, 0.5)[1].tolist(), reference.nms(boxes, scores, 0.5)),
        'nms_match': verdict([g.tolist() for g in f.nms_match(dets, 0.5)], reference.nms_match(dets, 0.5)),
    }
    labels = torch.arange(300) % 5
    found = f.batched_nms(boxes, scores, labels, dict(iou_threshold=0.5))[1].tolist()
    kept = [
        i for k in range(5) for i in (torch.arange(k, 300, 5)[reference.nms(boxes[k::5], scores[k::5], 0.5)]).tolist()
    ]
    rows['batched_nms'] = verdict(found, sorted(kept, key=lambda i: -scores[i]))
    for method in f.SOFT_METHODS:
        index = f.soft_nms(boxes, scores, 0.3, 0.5, 0.01, method)[1].tolist()
        rows[f'soft_nms, {method}'] = verdict(index, reference.soft_nms(boxes, scores, 0.3, 0.5, 0.01, method)[1])
    return rows


def _numeric() -> dict[str, tuple[float, float]]:
    from mmplugin.ops import functions as f

    x, rois = _input(2, 3, 12, 14), torch.tensor([[0, 1.0, 1, 20, 15], [1, -9, 3, 70, 40], [1, 30, 20, 50, 44.0]])
    rows = {}
    for mode in ('avg', 'max'):
        for ratio in (0, 2):
            for aligned in (True, False):
                options = (0.25, ratio, mode, aligned)
                name = (
                    f'roi_align, {mode}, {f"{ratio} samples" if ratio else "adaptive"}{", aligned" if aligned else ""}'
                )
                rows[name] = _differentiable(
                    lambda x, o=options: f.roi_align(x, rois, (3, 3), *o),
                    lambda x, o=options: reference.roi_align(x, rois, (3, 3), *o),
                    x,
                )
    rows['roi_pool'] = _differentiable(
        lambda x: f.roi_pool(x, rois, (3, 3), 0.25), lambda x: reference.roi_pool(x, rois, (3, 3), 0.25), x
    )
    logits, labels = _input(9, 4) * 3, torch.arange(9) % 5
    for name in ('sigmoid_focal_loss', 'softmax_focal_loss'):
        rows[name] = _differentiable(
            lambda x, n=name: getattr(f, n)(x, labels, 2.0, 0.25, None, 'sum'),
            lambda x, n=name: getattr(reference, n)(x, labels, 2.0, 0.25, None),
            logits,
        )
    tensors = _input(1, 4, 6, 7), _input(1, 18, 6, 7, seed=3), _input(2, 4, 3, 3, seed=4), _input(1, 9, 6, 7, seed=5)
    ones, sizes = (1, 1), dict(stride=1, padding=1)
    rows['deform_conv2d'] = _differentiable(
        lambda x, o, w: f.deform_conv2d(x, o, w, **sizes),
        lambda x, o, w: reference.deform_conv2d(x, o, None, w, ones, ones, ones, 1, 1),
        *tensors[:3],
    )
    rows['modulated_deform_conv2d'] = _differentiable(
        lambda x, o, w, m: f.modulated_deform_conv2d(x, o, m, w, **sizes),
        lambda x, o, w, m: reference.deform_conv2d(x, o, m, w, ones, ones, ones, 1, 1),
        *tensors,
    )
    return rows


def _times(compiled: str) -> dict[str, tuple[float, float] | str]:
    """Median seconds (here, compiled) of every case; each round runs both, so that a busy machine slows both."""
    sides = {'here': [sys.executable, '--stand-in'], 'compiled': [compiled]}
    seen: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    for _ in range(ROUNDS):
        for side, (python, *flags) in sides.items():
            # Only this project's own interpreter gets its folder: the other side must not see the stand-in.
            path = {'PYTHONPATH': str(WORKER.parents[2])} if side == 'here' else {}
            command = [python, '-W', 'ignore', str(WORKER), *flags]
            done = subprocess.run(command, capture_output=True, text=True, env={**env, **path}, cwd='/')
            if done.returncode:
                raise UserError(f'{python} could not run the cases; its last words: {done.stderr.strip()[-300:]}')
            for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                seen[side].setdefault(name, []).append(value)
    rows = {}
    for name in CASES:
        values = [[v for v in seen[side][name] if v is not None] for side in sides]
        rows[name] = tuple(statistics.median(v) for v in values) if all(values) else 'no compiled CPU kernel'
    return rows


def _document(times: dict | None) -> str:
    lines = [
        '# Operators',
        '',
        '`import mmplugin` puts these in the place of `mmcv._ext` where mmcv brings no compiled operators.',
        '`mmplugin.ops.backend()` says which are at work. What differs from the compiled ones stands below the tables.',
        '',
        'This page is written by `python docs/scripts/operators.py --compiled PYTHON`; '
        f'last on {datetime.date.today()}, {platform.machine()}, torch {torch.__version__}, '
        f'{os.cpu_count()} shared CPU cores.',
        '',
        '## Error against the float64 reference',
        '',
        'Float32 input. Errors are the largest absolute ones, relative to the largest value if that is over 1.',
        '',
        '| Operator | Forward | Gradient |',
        '|---|---|---|',
    ]
    lines += [f'| {name} | {verdict} | none |' for name, verdict in _selection().items()]
    lines += [f'| {name} | {forward:.1e} | {back:.1e} |' for name, (forward, back) in _numeric().items()]
    lines += ['', '## Time against the compiled operators', '']
    if times is None:
        lines += ['Not measured: no `--compiled PYTHON` was given.', '']
    else:
        lines += [
            f'Forward and backward where there is one; median of {ROUNDS} runs in turn, one thread each.',
            'Under 1: faster than compiled.',
            '',
            '| Case | Here, ms | Compiled, ms | Ratio |',
            '|---|---|---|---|',
        ]
        for name, value in times.items():
            cells = value if isinstance(value, str) else f'{value[0] / value[1]:.2f}'
            numbers = ('', '') if isinstance(value, str) else (f'{1e3 * v:.1f}' for v in value)
            lines.append(f'| {name} | {" | ".join(numbers)} | {cells} |')
        lines.append('')
    return '\n'.join(lines) + NOTES


def main() -> int:
    parser = argparse.ArgumentParser(prog='python docs/scripts/operators.py', description=__doc__.split('\n')[0])
    parser.add_argument('--compiled', metavar='PYTHON', help='interpreter whose mmcv has compiled operators')
    parser.add_argument('--out', type=Path, default=Path('docs/operators.md'))
    args = parser.parse_args()
    console = Console(stderr=True)
    try:
        text = _document(_times(args.compiled) if args.compiled else None)
    except (UserError, FileNotFoundError) as error:
        console.print(str(error), markup=False, style='red')
        return 2
    args.out.write_text(text)
    console.print(f'Wrote {args.out}.', markup=False)
    return 0


if __name__ == '__main__':
    sys.exit(main())
