"""The command ``predict``: draw and write what a trained model finds in images, videos or a camera."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmplugin.cpu_threads import limit_threads
from mmplugin.deploy.exported import SUFFIXES as EXPORTED
from mmplugin.deploy.exported import ExportedPredictor
from mmplugin.engine.cfg_options import CfgOptions
from mmplugin.engine.config import load_config
from mmplugin.engine.media import CAMERA, IMAGE, Source, Video, find_sources
from mmplugin.engine.prediction import Prediction
from mmplugin.engine.predictions_io import WRITERS, Drawings, Item
from mmplugin.engine.predictor import SCORE, Predictor, Prepared, find_config_in, find_in_work_folder
from mmplugin.engine.window import Window
from mmplugin.engine.work_dir import prepare_folder
from mmplugin.errors import UserError
from mmplugin.files import reason
from mmplugin.text import duration, printable, some

STOPPED = 130  # exit code of Ctrl-C
LINE_EVERY = 20.0  # seconds between two lines of progress without a terminal


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage='%(prog)s WORK_DIR PATH... [options]\n       %(prog)s CONFIG CHECKPOINT PATH... [options]\n'
        '       %(prog)s FILE.onnx PATH... [options]',
        description='Predict images, folders, videos or a camera.',
    )
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='WORK_DIR | CONFIG CHECKPOINT | FILE.onnx, PATH...',
        help='the work folder of a training, or a config and a checkpoint, or an exported file; then images, folders, '
        'videos, patterns in quotes, or camera:0',
    )
    parser.add_argument('--out-dir', help='folder of the results; default: WORK_DIR/predictions, or predictions')
    parser.add_argument('--format', choices=WRITERS, help='results as COCO JSON, YOLO text or PNG masks')
    parser.add_argument('--score', type=_score, default=SCORE, help='lowest score of an object (%(default)s)')
    parser.add_argument('--classes', help='keep only these classes, separated by commas')
    parser.add_argument('--no-draw', action='store_true', help='write results, but no images or videos')
    parser.add_argument('--show', action='store_true', help='show every image in a window; q ends')
    parser.add_argument('--device', help='such as cpu or cuda:1; default: a GPU if there is one')
    parser.add_argument('--batch', type=_positive, metavar='N', help='images at once (8 on a GPU, 1 on a CPU)')
    parser.add_argument('--mini', action='store_true', help='the checkpoint was trained with --mini')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, help='other settings of the config: key=value')
    parser.add_argument(
        '--trust', action='store_true', help='run code that checkpoints may contain; only for files of people you trust'
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='predict although tensors of the checkpoint do not fit the model'
    )
    return parser.parse_args(argv)


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text}: expected a number from 0 to 1')
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: expected a whole number from 1')
    return int(text)


@dataclass
class _Run:
    """What happened so far."""

    failures: list[str] = field(default_factory=list)
    images: int = 0
    found: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stopped: bool = False


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return 0, or 130 after Ctrl-C, with everything written that was predicted until then."""
    options = parse(argv, prog)
    model = _find_model(options.inputs)
    paths = options.inputs[model.words :]
    if not paths:
        raise UserError('no PATH: name images, folders, videos, patterns in quotes, or camera:0')
    folder = Path(options.out_dir or model.folder / 'predictions')
    sources = find_sources(paths, folder)
    drawings = Drawings(folder)
    _protect_inputs(sources, drawings)
    prepare_folder(folder, '--out-dir')
    window = Window() if options.show else None
    limit_threads(0, torch.set_num_threads)
    predictor = _open(model, options, batch=1 if sources[0].kind == CAMERA or window else options.batch)
    labels = _chosen_labels(options.classes, predictor.classes)
    output = options.format or ('masks' if predictor.is_segmentation else 'coco')
    _check_format(output, predictor)
    console = Console(highlight=False)
    for problem in [] if isinstance(predictor, ExportedPredictor) else predictor.fit.problems():
        console.print(f'[bold]Not loaded:[/bold] {escape(problem)}', soft_wrap=True)
    classes = escape(some(predictor.classes, 6))
    checkpoint = escape(printable(str(model.checkpoint)))
    console.print(f'{checkpoint} on {predictor.device}, classes: {classes}', soft_wrap=True)
    run = _Run()
    try:
        with ExitStack() as files:
            progress = files.enter_context(_Progress(sources))
            write = files.enter_context(WRITERS[output](folder, predictor.classes))
            if not options.no_draw:
                files.enter_context(drawings)
            if window:
                files.callback(window.close)
            start = time.monotonic()
            try:
                for item, prediction in _predict(predictor, sources, run, progress):
                    prediction = prediction.select(labels=labels)
                    write(item, prediction)
                    run.images += 1
                    run.found.update(prediction.names)
                    progress.advance()
                    if window or not options.no_draw:
                        drawing = prediction.draw()
                        if not options.no_draw:
                            drawings.add(item, drawing)
                        if window and not window.show(drawing, wait=item.source.kind == IMAGE):
                            break
            except KeyboardInterrupt:
                run.stopped = True
            run.seconds = time.monotonic() - start
            if not run.images and not run.stopped:
                raise UserError('\n'.join(run.failures))
    except OSError as error:
        raise UserError(f'--out-dir {folder} cannot be written to: {reason(error)}') from error
    _report(run, folder, console, predictor.is_segmentation)
    return STOPPED if run.stopped else 0


@dataclass(frozen=True)
class _Model:
    """What the first words of the command line name.

    Args:
        config: The config; empty for an exported file.
        checkpoint: The checkpoint, or the exported file.
        folder: Folder of the results.
        words: Number of the words.
    """

    config: str | Path
    checkpoint: str | Path
    folder: Path
    words: int


def _find_model(words: Sequence[str]) -> _Model:
    first = Path(words[0]).expanduser()
    second = Path(words[1]).expanduser() if len(words) > 1 else None
    has_checkpoint = second is not None and second.is_file() and second.suffix in ('.pth', '.pt', '.safetensors')
    if first.suffix in EXPORTED:
        return _Model('', first, Path(), 1)
    if first.is_dir():
        if has_checkpoint:
            return _Model(find_config_in(first), words[1], first, 2)
        return _Model(*find_in_work_folder(first), first, 1)
    if not has_checkpoint:
        found = f'not {second}' if second else 'and nothing follows'
        raise UserError(
            f'{first} is not a work folder, so it must be a config that a checkpoint follows (NAME.pth), {found}. Use '
            '`mmplugin predict work_dirs/NAME PATH...` or `mmplugin predict CONFIG CHECKPOINT PATH...`'
        )
    return _Model(words[0], words[1], Path(), 2)


def _open(model: _Model, options: argparse.Namespace, batch: int | None) -> Predictor | ExportedPredictor:
    """Load a checkpoint, or a file that was exported."""
    if model.config:
        return Predictor(
            load_config(model.config, mini=options.mini, cfg_options=options.cfg_options),
            model.checkpoint,
            device=options.device,
            score=options.score,
            batch=batch,
            trust=options.trust,
            allow_partial=options.allow_partial,
        )
    for name in ('device', 'batch', 'mini', 'cfg_options', 'trust', 'allow_partial'):
        if getattr(options, name):
            raise UserError(f'--{name.replace("_", "-")} is for checkpoints; omit it with {model.checkpoint}')
    return ExportedPredictor(model.checkpoint, options.score)


def _protect_inputs(sources: Sequence[Source], drawings: Drawings) -> None:
    """Raise a ``UserError`` if a drawing would overwrite an input."""
    inputs = {Path(source.path).resolve() for source in sources if source.kind != CAMERA}
    for source in sources:
        if drawings.target(source).resolve() in inputs:
            raise UserError(
                f'--out-dir {drawings.folder}: the drawing would overwrite {source.path}; choose another folder'
            )


def _chosen_labels(names: str | None, classes: Sequence[str]) -> list[int] | None:
    """Return the indices of the classes to keep; None for all."""
    if names is None:
        return None
    wanted = [name.strip() for name in names.split(',')]
    for name in wanted:
        if name not in classes:
            close = get_close_matches(name, classes, n=3)
            hint = f'did you mean {" or ".join(close)}?' if close else f'allowed: {some(classes, 30)}'
            raise UserError(f"--classes: the model has no class '{name}'; {hint}")
    return [label for label, name in enumerate(classes) if name in wanted]


def _check_format(output: str, predictor: Predictor | ExportedPredictor) -> None:
    if output == 'yolo' and predictor.is_segmentation:
        raise UserError('--format yolo has no class maps; use --format masks or coco')
    if output == 'masks' and not predictor.is_segmentation and not predictor.has_masks:
        raise UserError('--format masks: this detector predicts boxes without masks; use --format coco or yolo')


def _predict(
    predictor: Any, sources: Sequence[Source], run: _Run, progress: '_Progress'
) -> Iterator[tuple[Item, Prediction]]:
    """Yield a prediction for each image that can be read, in order."""
    batch: list[tuple[Item, Prepared]] = []
    for loaded in _load(predictor, sources, run, progress):
        batch.append(loaded)
        if len(batch) == predictor.batch:
            yield from _predict_batch(predictor, batch)
            batch = []
    if batch:
        yield from _predict_batch(predictor, batch)


def _predict_batch(predictor: Any, batch: Sequence[tuple[Item, Prepared]]) -> Iterator[tuple[Item, Prediction]]:
    predictions = predictor.predict([prepared for _, prepared in batch])
    yield from zip((item for item, _ in batch), predictions, strict=True)


def _load(
    predictor: Any, sources: Sequence[Source], run: _Run, progress: '_Progress'
) -> Iterator[tuple[Item, Prepared]]:
    """Yield images and frames; what cannot be read is added to the failures of the run."""
    for source in sources:
        try:
            if source.kind == IMAGE:
                yield Item(source), predictor.prepare(source.path)
                continue
            video = Video(source)
            progress.add_frames(video.length)
            for number, frame in enumerate(video):
                yield Item(source, number, video.fps), predictor.prepare(frame)
        except UserError as error:
            run.failures.append(str(error))
            progress.advance(0)


class _Progress:
    """A bar on a terminal, and a line every few seconds elsewhere."""

    def __init__(self, sources: Sequence[Source]):
        self.total: int | None = sum(source.kind == IMAGE for source in sources)
        self.done, self.start = 0, time.monotonic()
        self.last_line = self.start
        self.console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        self.task: Any = None

    def __enter__(self) -> '_Progress':
        if sys.stderr.isatty():
            text = TextColumn('{task.fields[text]}')
            self.bar = Progress(BarColumn(24), MofNCompleteColumn(), text, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task('predict', total=self.total, text='')
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add_frames(self, count: int | None) -> None:
        """Add the frames of a video; the total is unknown with those of a camera."""
        self.total = None if self.total is None or count is None else self.total + count

    def advance(self, images: int = 1) -> None:
        """Show that images are done."""
        self.done += images
        now = time.monotonic()
        rate = self.done / max(now - self.start, 1e-9)
        left = f' | {duration((self.total - self.done) / rate)} left' if self.total and self.done else ''
        text = f'{rate:.2f} images/s{left}'
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, total=self.total, text=text)
        elif now - self.last_line > LINE_EVERY:
            self.last_line = now
            self.console.print(f'{self.done}/{self.total or "?"} | {text}', soft_wrap=True)


def _report(run: _Run, folder: Path, console: Console, is_segmentation: bool) -> None:
    unit = 'images with' if is_segmentation else 'objects:'
    found = ', '.join(f'{name} {count}' for name, count in run.found.most_common(12))
    rate = run.images / max(run.seconds, 1e-9)
    console.print(f'{run.images} images in {duration(run.seconds)}, {rate:.2f} per second', soft_wrap=True)
    console.print(escape(f'{unit} {found}' if found else 'no objects found'), soft_wrap=True)
    console.print(escape(printable(f'Results: {folder}')), soft_wrap=True)
    if run.failures:
        console.print(f'[bold]Not read: {len(run.failures)}[/bold]')
        for failure in run.failures:
            console.print(escape(printable(f'  {failure}')), soft_wrap=True)
