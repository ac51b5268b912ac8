"""``tools/benchmark.py``: how fast a backbone, a detector or a segmentor is, and how much memory it takes."""

import argparse
import datetime
import gc
import multiprocessing
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch._inductor.codecache import PyCodeCache

from mmplugin.benchmark import measure, output
from mmplugin.benchmark import subjects as models
from mmplugin.benchmark.sizes import parameters
from mmplugin.errors import UserError

WHAT = ('infer', 'train', 'kept', 'peak')  # and, only when asked for:
PROFILE = 'profile'
# Threads that wait for work must sleep, or their waiting counts as the other side's processor time
PASSIVE = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': '0'}


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Measure speed and memory of backbones, detectors and segmentors.',
        epilog='Random weights, random images: speed does not depend on them, but for the few boxes a detector finds.',
    )
    add = parser.add_argument
    add('names', nargs='+', metavar='NAME', help='v2_s2, evit (a family), all, timm:v2_s2; a config by path or name')
    add('--what', nargs='+', default=list(WHAT), metavar='W', help=f'of {", ".join(WHAT)} (the default), and {PROFILE}')
    add('--size', nargs='+', default=['512'], metavar='HxW', help='512, or 800x1333 (height x width); several are fine')
    add('--batch', nargs='+', default=['1'], metavar='N', help='images per inference; several are fine')
    add('--train-batch', default='2', metavar='N', help='images per training step (%(default)s)')
    add('--modes', nargs='+', default=['eager'], metavar='MODE', help='eager, or fused, compiled, bf16 joined by +')
    add('--beside', metavar='NAME', help='timm, or any NAME: measured in turn with ours')
    add('--beside-mode', default='eager', metavar='MODE', help="the other side's mode (%(default)s)")
    add('--norms', choices=('frozen', 'learning'), default='frozen', help='of bare backbones in training')
    add('--rounds', default='10', metavar='N', help='rounds at least, after two for warming up (%(default)s)')
    add('--clock', choices=('wall', 'cpu'), default='wall', help='cpu: processor time, for a machine that others use')
    add('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    add('--threads', metavar='N', help='of torch; default: its own choice')
    add('--peak-size', nargs='+', metavar='HxW', help='sizes of the peak memory; default: those of --size')
    add('--mes-units', nargs=2, default=['3', '1'], metavar=('M', 'MS'), help='units of size and latency (%(default)s)')
    add('--mes-alpha', nargs=2, default=['0.5', '1'], metavar=('SIZE', 'LATENCY'), help='exponents (%(default)s)')
    add('--mes-score', default='100', help='base score (%(default)s)')
    add('--machine', default=f'{platform.machine()}, {os.cpu_count()} CPU cores', help='how to call it in the tables')
    add('--json', type=Path, metavar='FILE', help='write all numbers')
    add('--plot', type=Path, metavar='FILE', help='published accuracy over latency: .png, .svg, .pdf')
    add('--accuracy', help=f'the one to draw: {", ".join(models.ACCURACIES)}; default: what fits each model')
    add('--write', type=Path, metavar='PAGE', help='replace the tables in a page such as docs/performance.md')
    return check(parser.parse_args(argv))


def check(options: argparse.Namespace) -> argparse.Namespace:
    """Everything that can be wrong on the command line is found before anything is measured."""
    for what in options.what:
        _one_of('--what', what, (*WHAT, PROFILE))
    options.size = [_size('--size', text) for text in options.size]
    options.peak_size = [_size('--peak-size', text) for text in options.peak_size or []] or options.size
    options.batch = [_count('--batch', text) for text in options.batch]
    options.train_batch = _count('--train-batch', options.train_batch)
    options.rounds = _count('--rounds', options.rounds)
    options.threads = _count('--threads', options.threads) if options.threads else None
    for mode in (*options.modes, options.beside_mode):
        _mode(mode)
    units = [_positive('--mes-units', text) for text in options.mes_units]
    alphas = [_positive('--mes-alpha', text) for text in options.mes_alpha]
    if max(alphas) > 1:
        raise UserError(f'--mes-alpha {" ".join(options.mes_alpha)}: allowed are two numbers above 0, up to 1')
    options.mes = output.Mes(_positive('--mes-score', options.mes_score), *units, *alphas)
    if not re.fullmatch(r'cpu|cuda(:\d+)?', options.device):
        raise UserError(f'--device {options.device}: allowed are cpu, cuda and cuda:NUMBER')
    if options.device != 'cpu' and not torch.cuda.is_available():
        raise UserError(f'--device {options.device}: torch sees no CUDA GPU; `mmplugin doctor` tells why, or use cpu')
    if options.clock == 'cpu' and options.device != 'cpu':
        raise UserError('--clock cpu counts processor time and says nothing about a GPU: use --clock wall there')
    if options.accuracy:
        _one_of('--accuracy', options.accuracy, models.ACCURACIES)
    if options.plot and 'infer' not in options.what:
        raise UserError('--plot draws latencies: add infer to --what')
    if options.plot and options.plot.suffix not in ('.png', '.svg', '.pdf'):
        raise UserError(f'--plot {options.plot}: allowed are names that end in .png, .svg or .pdf')
    for flag, path in (('--json', options.json), ('--plot', options.plot)):
        if path and not path.parent.is_dir():
            raise UserError(f'{flag} {path}: the folder {path.parent} does not exist; create it, or name another one')
    if options.write:
        output.check_page(options.write)
    options.names = models.expand(options.names)
    return options


def _one_of(flag: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f'{flag} {value}: allowed are {", ".join(allowed)}')


def _mode(mode: str) -> None:
    steps = mode.split('+')
    if not set(steps) <= set(models.STEPS) or len(set(steps)) < len(steps) or ('eager' in steps and len(steps) > 2):
        raise UserError(f"mode '{mode}': allowed are eager, fused, compiled, bf16, joined by +, such as fused+compiled")


def _size(flag: str, text: str) -> tuple[int, int]:
    sides = [int(side) for side in re.findall(r'\d+', text)] if re.fullmatch(r'\d+(x\d+)?', text) else []
    if not sides or min(sides) < 32:
        raise UserError(f'{flag} {text}: allowed are 512 or 800x1333 (height x width), both sides 32 or more')
    return sides[0], sides[-1]


def _count(flag: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'{flag} {text}: allowed are whole numbers from 1')
    return int(text)


def _positive(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise UserError(f'{flag} {text}: allowed are numbers above 0')
    return value


class Benchmark:
    """Runs what the command line asks for, model after model, into ``results``."""

    def __init__(self, options: argparse.Namespace, progress: Progress | None = None):
        self.options, self.progress, self.device = options, progress, torch.device(options.device)
        self.beside = options.beside
        notes = []
        if self.beside == 'timm':
            problem = models.check_timm()
            self.beside, notes = (None, [problem]) if problem else ('timm', [])
        self.subjects = [models.resolve(name, options.norms == 'frozen') for name in options.names]
        wrong = [subject.name for subject in self.subjects if subject.kind != 'backbone']
        if self.beside == 'timm' and wrong:
            raise UserError(f'--beside timm: timm has no {", ".join(wrong)}; name another config, or measure backbones')
        if self.beside not in (None, 'timm'):
            models.resolve(self.beside)
        if options.plot and all(subject.published(options.accuracy) is None for subject in self.subjects):
            wanted = options.accuracy or 'accuracy'
            known = [name for name, values in models.PUBLISHED.items() if wanted in values or not options.accuracy]
            raise UserError(f'--plot: none of these models has a published {wanted}; these have: {", ".join(known)}')
        self.results = output.Results(self._meta(), notes=notes)

    def _meta(self) -> dict:
        options = self.options
        return dict(
            date=datetime.date.today().isoformat(),
            machine=options.machine if self.device.type == 'cpu' else torch.cuda.get_device_name(self.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            device=options.device,
            clock='events' if self.device.type == 'cuda' else options.clock,
            rounds=options.rounds,
            norms=options.norms,
            beside=self.beside,
            beside_mode=options.beside_mode,
            mes=vars(options.mes),
        )

    def run(self) -> output.Results:
        options = self.options
        steps = len(options.what) - ({'train', 'kept'} <= set(options.what))
        task = self.progress and self.progress.add_task('', total=len(self.subjects) * steps)
        for subject in self.subjects:
            for what in ('infer', 'train', 'peak', 'profile'):
                if what not in options.what and not (what == 'train' and 'kept' in options.what):
                    continue
                if self.progress:
                    self.progress.update(task, description=f'{subject.name}: {what}')
                self._alone(subject, what)
                if self.progress:
                    self.progress.advance(task)
            self._describe(subject)
            if options.json:  # after each model: whoever interrupts hours of measuring keeps what there is
                self.results.write_json(options.json)
        return self.results

    def _alone(self, subject: models.Subject, what: str) -> None:
        """Measures in a new process.

        A long life leaves memory in pieces, which slows what comes after, and one crash shall not cost all figures.
        """
        changes = dict(names=[subject.name], beside=self.beside, plot=None)
        options = argparse.Namespace(**{**vars(self.options), **changes})
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as process:
            try:
                part = process.submit(_measured, options, what).result()
            except BrokenProcessPool:
                self.results.notes.append(
                    f'{subject.name}: the process that measured {what} was killed, probably because memory ran out; '
                    'give smaller --size or --batch'
                )
                return
        for table in ('inference', 'training', 'memory', 'profile'):
            getattr(self.results, table).extend(getattr(part, table))

    def _other(self, subject: models.Subject) -> str | None:
        return f'timm:{subject.name.removeprefix("timm:")}' if self.beside == 'timm' else self.beside

    def _describe(self, subject: models.Subject) -> None:
        sizes = self.options.size
        macs = {f'{height}x{width}': subject.macs(height, width) for height, width in sizes}
        self.results.models.append(
            dict(
                name=models.short(subject.name),
                kind=subject.kind,
                parameters=parameters(self._built(subject.name, sizes[0]).model),
                macs={size: count for size, count in macs.items() if count is not None},
                accuracy=subject.accuracy,
                published={
                    name: value
                    for name in models.ACCURACIES
                    if (value := subject.published(name)) is not None
                    and (subject.kind == 'backbone' or name == subject.accuracy)
                },
            )
        )

    def _built(self, name: str, size: tuple[int, int]) -> models.Runnable:
        return measure.built(name, *size, self.options.device, self.options.norms == 'frozen')

    def _infer(self, subject: models.Subject) -> None:
        modes = {mode: (subject.name, mode) for mode in self.options.modes}
        if other := self._other(subject):
            modes['beside'] = other, self.options.beside_mode
        for size in self.options.size:
            _forget_compiled()
            sides = {key: self._built(name, size) for key, (name, _) in modes.items()}
            millions = {key: parameters(side.model) / 1e6 for key, side in sides.items()}
            calls = {key: models.variant(side, modes[key][1]) for key, side in sides.items()}
            for batch in self.options.batch:
                times = self._time(calls, measure.image(batch, *size, self.device))
                for key, (name, mode) in modes.items():
                    self._note_inference(name, size, batch, mode, times[key], millions[key])
                    if other and key != 'beside':
                        ratio = measure.paired_ratios(times[key], times['beside'])
                        self.results.inference[-1]['ratio'] = ratio

    def _time(self, calls: dict[str, Callable], x: torch.Tensor) -> dict[str, list[float]]:
        with torch.inference_mode():
            runs = {key: partial(call, x) for key, call in calls.items()}
            return measure.in_turn(runs, self.options.rounds, self.options.clock, self.device)

    def _note_inference(
        self, name: str, size: tuple[int, int], batch: int, mode: str, times: list[float], millions: float
    ) -> None:
        ms = measure.spread(times)
        self.results.inference.append(
            dict(
                name=models.short(name),
                size=list(size),
                batch=batch,
                mode=mode,
                ms=ms,
                ratio=None,
                images_per_second=batch * 1e3 / ms['median'],
                mes=self.options.mes(millions, ms['median'] / batch),
            )
        )

    def _train(self, subject: models.Subject) -> None:
        what, other, batch = self.options.what, self._other(subject), self.options.train_batch
        for size in self.options.size:
            x = measure.image(batch, *size, self.device)
            sides = {'ours': self._built(subject.name, size)}
            if other:
                sides['beside'] = self._built(other, size)
            for side in sides.values():
                side.model.train()
            kept, times = {}, {}
            if 'kept' in what:
                kept = {name: measure.kept_bytes(side.model, side.loss, x) for name, side in sides.items()}
            if 'train' in what:
                steps = {name: partial(measure.training_step, side, x) for name, side in sides.items()}
                times = measure.in_turn(steps, self.options.rounds, self.options.clock, self.device)
            for name in sides:
                compared = other and name == 'ours'
                self.results.training.append(
                    dict(
                        name=models.short(subject.name if name == 'ours' else other),
                        size=list(size),
                        batch=batch,
                        ms=measure.spread(times[name]) if times else None,
                        ratio=measure.paired_ratios(times['ours'], times['beside']) if times and compared else None,
                        kept=kept.get(name),
                        kept_ratio=kept['ours'] / kept['beside'] if kept and compared else None,
                    )
                )

    def _profile(self, subject: models.Subject) -> None:
        for size in self.options.size:
            side = self._built(subject.name, size)
            side.model.train()
            step = partial(measure.training_step, side, measure.image(self.options.train_batch, *size, self.device))
            for operator, calls, share in measure.operator_shares(step, self.device)[: output.PROFILED]:
                record = dict(name=models.short(subject.name), size=list(size), batch=self.options.train_batch)
                self.results.profile.append({**record, 'operator': operator, 'calls': calls, 'share': share})

    def _peak(self, subject: models.Subject) -> None:
        options, other = self.options, self._other(subject)
        mode, batch, first = options.modes[0], options.batch[0], None
        for size in options.peak_size:
            peak = measure.peak_bytes(subject.name, size, batch, mode, options.device)
            first = first or (size, peak)
            pixels = size[0] * size[1] / (first[0][0] * first[0][1])
            name = models.short(subject.name)
            record = dict(name=name, size=list(size), batch=batch, mode=mode, peak=peak, ratio=None)
            record['growth'] = peak / first[1] / pixels if pixels > 1 and first[1] else None
            record['growth_from'] = list(first[0])
            if other and size == options.peak_size[0]:  # the larger ones are about growth, and timm's take minutes
                record['ratio'] = peak / measure.peak_bytes(other, size, batch, options.beside_mode, options.device)
            self.results.memory.append(record)


def _forget_compiled() -> None:
    """Frees the networks that were compiled before: inductor keeps their weights, which are constants of its code."""
    torch.compiler.reset()
    PyCodeCache.cache_clear()
    gc.collect()


def _measured(options: argparse.Namespace, what: str) -> output.Results:
    """What a new process does: one kind of figure of one model."""
    _set_up(options)
    benchmark = Benchmark(options)
    actions = dict(infer=benchmark._infer, train=benchmark._train, peak=benchmark._peak, profile=benchmark._profile)
    actions[what](*benchmark.subjects)
    return benchmark.results


def _set_up(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    # torch.compile traces through our caches of index tables: meant so, their results are constants
    warnings.filterwarnings('ignore', message='Dynamo detected a call to a `functools.lru_cache`')


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    options = parse(argv, prog)
    argv = list(sys.argv[1:] if argv is None else argv)
    if options.clock == 'cpu' and any(os.environ.get(name) != value for name, value in PASSIVE.items()):
        return _again_with_passive_threads(argv)
    _set_up(options)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        results = Benchmark(options, progress).run()
    output.print_results(results, Console(highlight=False))
    if options.write:
        output.write_page(options.write, results, shlex.join(['python', 'tools/benchmark.py', *argv]))
    if options.plot:
        output.plot(results, options.plot, options.accuracy)
    return 0


def _again_with_passive_threads(argv: list[str]) -> int:
    """The threads read their settings when torch is loaded, so it takes a new process."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    command = [sys.executable, '-m', 'mmplugin.cli', 'benchmark', *argv]
    return subprocess.run(command, env={**os.environ, **PASSIVE, 'PYTHONPATH': path}, check=False).returncode
