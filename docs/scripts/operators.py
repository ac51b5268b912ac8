"""Write the tables of docs/operators.md: errors against the references of the tests, times against compiled operators.

Run ``python docs/scripts/operators.py [--compiled PYTHON]``. PYTHON is an interpreter whose mmcv has compiled
operators. Without it, the table of times stays as it is.
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
from markers import ROOT, replace_between
from operators_timing import BEST_OF, CASES
from rich.console import Console

from mmplugin.errors import UserError
from mmplugin.ops import functions as f
from mmplugin.tables import Table

sys.path.insert(0, str(ROOT / 'tests'))
import operator_references as reference

PAGE = ROOT / 'docs' / 'operators.md'
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
    """Return the largest errors of the float32 result and of its gradients, relative to the largest value."""
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
    """Compare the boxes that the operators of the NMS family select."""
    boxes, scores = _boxes(300)
    dets = torch.cat((boxes, scores[:, None]), 1)

    def verdict(found: object, expected: object) -> str:
        return 'same boxes' if found == expected else 'DIFFERENT BOXES'

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
    """Return the seconds of every case: mmplugin, compiled. Each round runs both, so a busy machine slows both."""
    sides = {'mmplugin': [sys.executable, '--mmplugin'], 'compiled': [compiled]}
    seen: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    for _ in range(ROUNDS):
        for side, (python, *flags) in sides.items():
            # the compiled side must not import mmplugin
            path = {'PYTHONPATH': str(ROOT)} if side == 'mmplugin' else {}
            command = [python, '-W', 'ignore', str(WORKER), *flags]
            done = subprocess.run(command, capture_output=True, text=True, env={**env, **path}, cwd='/')
            if done.returncode:
                raise UserError(f'{python} could not run the cases: {done.stderr.strip()[-300:]}')
            for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                seen[side].setdefault(name, []).append(value)
    rows = {}
    for name in CASES:
        values = [[v for v in seen[side][name] if v is not None] for side in sides]
        rows[name] = tuple(statistics.median(v) for v in values) if all(values) else 'no compiled CPU kernel'
    return rows


def _machine() -> str:
    return (
        f'{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} shared CPU cores, torch {torch.__version__}'
    )


def errors() -> str:
    """Compute all errors and return their table."""
    rows = [(name, verdict, 'none') for name, verdict in _selection().items()]
    rows += [(name, f'{forward:.1e}', f'{gradient:.1e}') for name, (forward, gradient) in _numeric().items()]
    return f'{Table("", ("Operator", "Result", "Gradient"), rows).markdown()}\n\nComputed {_machine()}.'


def times(compiled: str) -> str:
    """Time all cases and return their table."""
    rows = []
    for name, value in _times(compiled).items():
        if isinstance(value, str):
            rows.append((name, '', '', value))
        else:
            rows.append((name, *(f'{1e3 * seconds:.1f}' for seconds in value), f'{value[0] / value[1]:.2f}'))
    table = Table('', ('Case', 'mmplugin, ms', 'compiled, ms', 'ratio'), rows).markdown()
    return (
        f'{table}\n\nMeasured {_machine()}, one thread: medians of {ROUNDS} rounds, each the faster of {BEST_OF} runs.'
    )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--compiled', metavar='PYTHON', help='interpreter whose mmcv has compiled operators')
    options = parser.parse_args()
    try:
        measured = times(options.compiled) if options.compiled else None
    except (UserError, FileNotFoundError) as error:
        Console(stderr=True).print(str(error), markup=False, style='red')
        return 2
    replace_between(PAGE, 'errors', errors())
    if measured:
        replace_between(PAGE, 'times', measured)
    return 0


if __name__ == '__main__':
    sys.exit(main())
