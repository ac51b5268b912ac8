"""``mmplugin benchmark``: measure speed and memory of backbones, detectors and segmentors."""

import argparse
import datetime
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmplugin.benchmark import measure, runtimes
from mmplugin.benchmark.measure import METRICS, Settings, Side
from mmplugin.benchmark.plot import accuracy_of, plot
from mmplugin.benchmark.published import ACCURACIES, PUBLISHED, accuracies_of
from mmplugin.benchmark.results import MES_UNITS, Model, Results, Size, conditions, size_text, tables
from mmplugin.benchmark.sizes import is_arch, macs, parameters
from mmplugin.benchmark.subjects import MODES, build, expand, kind_of, short_name, timm_problem
from mmplugin.errors import UserError
from mmplugin.tables import show

DEFAULT_METRICS = ('infer', 'train', 'saved', *(['peak'] if measure.resource else []))
PLOTS = ('.png', '.svg', '.pdf')
# A thread that waits must sleep, or its waiting counts as processor time. Processes read this when they load torch.
PASSIVE_THREADS = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': '0'}


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line. All that can be wrong with it is found before anything is measured."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage='%(prog)s NAME [NAME ...] [options]',
        description='Measure speed and memory of backbones, detectors and segmentors. Weights and images are random.',
    )
    # fmt: off
    add = parser.add_argument
    add('names', nargs='+', metavar='NAME', help='v2_s2, evit (a family), all, timm:v2_s2, arch.json, or a config')
    add('--what', nargs='+', choices=METRICS, default=DEFAULT_METRICS, metavar='METRIC',
        help=f'{", ".join(METRICS)}; default: {", ".join(DEFAULT_METRICS)}')
    add('--size', nargs='+', type=size, default=[(512, 512)], metavar='HxW', help='512 (the default), 800x1333, ...')
    add('--batch', nargs='+', type=count, default=[1], metavar='N', help='images per inference; default: 1')
    add('--train-batch', type=count, default=2, metavar='N', help='images per training step; default: 2')
    add('--modes', nargs='+', type=mode, default=['eager'], metavar='MODE',
        help='of inference: eager (the default), or fused, compiled and bf16 joined by +')
    add('--runtime', nargs='+', choices=runtimes.ALLOWED, metavar='RUNTIME',
        help=f'time exported backbones beside PyTorch, fused: {", ".join(runtimes.ALLOWED)}')
    add('--timm', action='store_true', help="with --runtime: timm's networks, too, eager and in each runtime")
    add('--files', type=Path, metavar='FOLDER', help='with --runtime: keep the exported files, and use those in there')
    add('--beside', metavar='NAME', help='baseline of all comparisons: timm, or any NAME')
    add('--beside-mode', type=mode, default='eager', metavar='MODE', help='mode of the baseline; default: eager')
    add('--norms', choices=('frozen', 'trainable'), default='frozen', help='of bare backbones; default: frozen')
    add('--rounds', type=count, default=10, metavar='N', help='at least so many, after two to warm up; default: 10')
    add('--clock', choices=('wall', 'cpu'), default='wall', help='cpu is processor time, for a busy machine')
    add('--device', type=device, default='cpu', help='cpu (the default), cuda, cuda:1, ...')
    add('--threads', type=count, metavar='N', help="of torch; default: torch's own choice")
    add('--cores', type=count, metavar='N', help='pin each process to N cores, with as many threads')
    add('--machine', default=f'{platform.machine()}, {os.cpu_count()} CPU cores', help='its name in the results')
    add('--mes-units', nargs=2, type=float, default=MES_UNITS, metavar=('M', 'MS'),
        help='million parameters and ms of the Mobile Efficiency Score; default: 3 1, as in the paper')
    add('--json', type=Path, metavar='FILE', help='write all figures to a file')
    add('--plot', type=Path, metavar='FILE', help='plot published accuracy over latency: .png, .svg or .pdf')
    add('--accuracy', choices=ACCURACIES, metavar='A', help=f'of the plot: {", ".join(ACCURACIES)}')
    # fmt: on
    options = parser.parse_args(argv)
    options.names = expand(options.names)
    _check(options)
    return options


def size(text: str) -> Size:
    """Return height and width from ``512`` or ``800x1333``."""
    sides = [int(side) for side in text.split('x')] if re.fullmatch(r'\d+(x\d+)?', text) else [0]
    if min(sides) < 32:
        raise argparse.ArgumentTypeError(f'{text}: allowed are 512 or 800x1333 (height x width), both sides 32 or more')
    return sides[0], sides[-1]


def count(text: str) -> int:
    """Return a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: allowed are whole numbers from 1')
    return int(text)


def mode(text: str) -> str:
    """Return a mode of inference, such as ``fused+compiled``."""
    steps = text.split('+')
    if not set(steps) <= set(MODES) or len(set(steps)) < len(steps):
        raise argparse.ArgumentTypeError(f'{text}: allowed are {", ".join(MODES)}, joined by +, such as fused+compiled')
    return text


def device(text: str) -> str:
    """Return the name of a device that torch has."""
    if not re.fullmatch(r'cpu|cuda(:\d+)?', text):
        raise argparse.ArgumentTypeError(f'{text}: allowed are cpu, cuda and cuda:NUMBER')
    if text != 'cpu' and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f'{text}: torch finds no CUDA GPU. `mmplugin doctor` says why; or use cpu')
    return text


def _check(options: argparse.Namespace) -> None:
    if options.clock == 'cpu' and options.device != 'cpu':
        raise UserError('--clock cpu counts processor time, which says nothing about a GPU; use --clock wall')
    if 'peak' in options.what and options.device == 'cpu' and not measure.resource:
        raise UserError('--what peak: this system does not report the peak memory of a process; omit peak')
    for flag, path in (('--json', options.json), ('--plot', options.plot)):
        if path and not path.parent.is_dir():
            raise UserError(f'{flag} {path}: the folder {path.parent} does not exist; create it or choose another one')
    if min(options.mes_units) <= 0:
        raise UserError(f'--mes-units {" ".join(map(str, options.mes_units))}: allowed are numbers above 0')
    others = [name for name in options.names if kind_of(name) != 'backbone']
    if options.beside == 'timm' and others:
        raise UserError(f'--beside timm: timm has no {", ".join(others)}; name a config, or measure backbones')
    if options.beside not in (None, 'timm'):
        kind_of(options.beside)
    if options.cores:
        _check_cores(options)
    if options.runtime:
        _check_runtimes(options, others)
    elif options.timm or options.files:
        raise UserError('--timm and --files are for exported files: name runtimes, such as --runtime onnxruntime')
    if options.plot:
        _check_plot(options)


def _check_cores(options: argparse.Namespace) -> None:
    if not hasattr(os, 'sched_setaffinity'):
        raise UserError('--cores: this system does not pin processes; use --threads')
    if options.threads not in (None, options.cores):
        raise UserError(f'--cores {options.cores} has as many threads; omit --threads')
    if options.cores > (usable := len(os.sched_getaffinity(0))):
        raise UserError(f'--cores {options.cores}: this process may use {usable}')
    options.threads = options.cores


def _check_runtimes(options: argparse.Namespace, others: list[str]) -> None:
    if others:
        raise UserError(f'--runtime is for backbones; omit {", ".join(others)}')
    if timm := [name for name in options.names if name.startswith('timm:')]:
        raise UserError(f"--runtime: omit {', '.join(timm)}; --timm adds timm's networks")
    given = dict(beside=options.beside, device=options.device != 'cpu', batch=options.batch != [1])
    given |= dict(modes=options.modes != ['eager'], what=options.what not in (DEFAULT_METRICS, ['infer']))
    if wrong := [f'--{name}' for name, value in given.items() if value]:
        raise UserError(
            f'--runtime times inference of one image on the CPU beside PyTorch, fused; omit {", ".join(wrong)}'
        )
    options.versions = runtimes.require(options.runtime)
    if options.timm and (problem := timm_problem()):
        raise UserError(f'--timm: {problem}')
    options.what, options.runtime = ['infer'], list(dict.fromkeys(options.runtime))


def _check_plot(options: argparse.Namespace) -> None:
    if options.plot.suffix not in PLOTS:
        raise UserError(f'--plot {options.plot}: allowed are names that end in {", ".join(PLOTS)}')
    if 'infer' not in options.what:
        raise UserError('--plot shows latencies: add infer to --what')
    if not any(accuracy_of(accuracies_of(short_name(name)), options.accuracy) for name in options.names):
        known = [name for name, row in PUBLISHED.items() if accuracy_of(row.accuracy, options.accuracy)]
        wanted = options.accuracy or 'accuracy'
        raise UserError(f'--plot: none of these models has a published {wanted}; these have: {", ".join(known)}')


def run(options: argparse.Namespace, progress: Progress, command: str = '') -> Results:
    """Measure all metrics of all models. A model whose process is killed costs one line, not the run."""
    results, beside = Results(_meta(options, command)), options.beside
    settings = Settings(
        batches=options.batch,
        train_batch=options.train_batch,
        rounds=options.rounds,
        clock=options.clock,
        device=options.device,
        threads=options.threads,
        cores=options.cores,
        freeze_norms=options.norms == 'frozen',
    )
    if beside == 'timm' and (problem := timm_problem()):
        beside = results.meta['baseline'] = None
        results.notes.append(problem)
    task = progress.add_task('', total=len(options.names) * len(options.size) * len(options.what))
    for name in options.names:
        baseline = f'timm:{name.removeprefix("timm:")}' if beside == 'timm' else beside
        names = (name, baseline, options.timm and f'timm:{name}')
        _describe(filter(None, names), options.size, results)
        for size in options.size:
            if options.runtime:
                _measure_files(settings, options, name, size, results, partial(progress.update, task))
                progress.advance(task)
                continue
            for metric in options.what:
                progress.update(task, description=f'{short_name(name)}: {metric} at {size_text(size)}')
                _measure(metric, settings, _sides(metric, options, name, baseline), size, results)
                progress.advance(task)
        if options.json:  # after each model, so that an interrupted run keeps what it has
            results.write_json(options.json)
    return results


def _meta(options: argparse.Namespace, command: str) -> dict[str, Any]:
    return dict(
        date=datetime.date.today().isoformat(),
        machine=options.machine if options.device == 'cpu' else torch.cuda.get_device_name(options.device),
        command=command,
        threads=options.threads or torch.get_num_threads(),
        torch=torch.__version__,
        device=options.device,
        clock=options.clock,
        rounds=options.rounds,
        norms=options.norms,
        baseline='fused' if options.runtime else options.beside and short_name(options.beside),
        baseline_mode=options.beside_mode,
        runtimes=options.versions if options.runtime else {},
        cores=options.cores,
        mes_units=options.mes_units,
    )


def _describe(names: Iterable[str], sizes: Sequence[Size], results: Results) -> None:
    for name in names:
        if short_name(name) in [model.name for model in results.models]:
            continue
        counts = macs(name, sizes) if is_arch(name) else []  # other models cannot be counted without running them
        gmacs = {size_text(size): count / 1e9 for size, count in zip(sizes, counts, strict=False)}
        count, published = parameters(build(name, *sizes[0]).model), accuracies_of(short_name(name))
        results.models.append(Model(short_name(name), kind_of(name), count, gmacs, published))


def _sides(metric: str, options: argparse.Namespace, name: str, baseline: str | None) -> list[Side]:
    """Training is eager, and peak memory is measured in the first mode only."""
    modes = dict(infer=options.modes, peak=options.modes[:1]).get(metric, ['eager'])
    sides = [Side(name, mode) for mode in modes]
    if baseline and metric != 'profile':
        sides.append(Side(baseline, options.beside_mode if metric in ('infer', 'peak') else 'eager', is_baseline=True))
    return sides


def _measure_files(
    settings: Settings,
    options: argparse.Namespace,
    name: str,
    size: Size,
    results: Results,
    update: Callable[..., object],
) -> None:
    """Export a backbone and time its files."""
    title = f'{short_name(name)} at {size_text(size)}'
    with tempfile.TemporaryDirectory() as own:
        folder = options.files or Path(own)
        sides, problems = runtimes.write_files(
            settings,
            runtimes.sides_of(name, options.runtime, options.timm),
            size,
            folder,
            lambda text: update(description=f'{title}: {text}'),
        )
        results.notes += problems
        update(description=title)
        try:
            times, problems = measure.in_new_process(runtimes.inference, settings, sides, size, folder)
            results.measurements += times
            results.notes += problems
        except BrokenProcessPool:
            results.notes.append(f'{title}: no times, because the process ran out of memory or was killed')


def _measure(metric: str, settings: Settings, sides: list[Side], size: Size, results: Results) -> None:
    try:
        records = measure.measure(metric, settings, sides, size)
    except (BrokenProcessPool, torch.OutOfMemoryError):
        results.notes.append(
            f'{short_name(sides[0].model)}: no {metric} at {size_text(size)}, because its process ran out of memory or '
            'was killed; try a smaller --size or --batch'
        )
        return
    (results.profile if metric == 'profile' else results.measurements).extend(records)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv, prog)
    if options.clock == 'cpu':
        os.environ.update(PASSIVE_THREADS)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        results = run(options, progress, shlex.join(['mmplugin', 'benchmark', *argv]))
    console = Console(highlight=False)
    show(tables(results), console)
    for line in conditions(results):
        console.print(line, soft_wrap=True, markup=False)
    if options.plot:
        _plot(results, options)
    return 0


def _plot(results: Results, options: argparse.Namespace) -> None:
    """Plot the first mode, or each runtime that was measured in a file of its own."""
    if not options.runtime:
        plot(results, options.plot, options.accuracy)
        return
    measured = {record.mode for record in results.of('infer')}
    for runtime in options.runtime:
        if (mode := runtimes.MODES.get(runtime, runtime)) in measured:
            path = options.plot.with_stem(f'{options.plot.stem}-{runtime}')
            plot(results, path, options.accuracy, mode)
