"""The command ``export``: a trained model as a file that runs without PyTorch, checked against PyTorch."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from mmplugin.config_edits import is_segmentation
from mmplugin.deploy import export, mobile
from mmplugin.deploy.check import COMPARED, Proof, headlines, prove, prove_numbers
from mmplugin.deploy.drafts import draft
from mmplugin.deploy.metadata import INPUTS, Metadata
from mmplugin.deploy.models import WHATS, Choice, Traceable, least_sides, traceable
from mmplugin.engine.cfg_options import CfgOptions
from mmplugin.engine.config import load_config
from mmplugin.engine.data_options import add_data_arguments, data_options
from mmplugin.errors import UserError
from mmplugin.layers import ceil_div
from mmplugin.tables import Table, show

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'executorch': '.pte', 'coreml': '.mlpackage', 'pt2': '.pt2'}
RUNTIME = {kind: 'onnxruntime' if kind == 'onnx' else kind for kind in SUFFIXES}
BESIDE = {'openvino': ('.bin',)}  # suffixes of files that belong to a file of a format
PREDICTOR = 'predict.py'
MASKS = ('28', 'full')
DEFAULT_SIZE, IMAGES = (512, 512), 100  # images of AP or mIoU


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Export a trained model to a file that runs without PyTorch, and compare both.'
    )
    add = parser.add_argument
    add('config', help='a file, or the name of a config: maskrcnn_v2_s2, semfpn_evit_m4, ...')
    add('checkpoint', help='the weights of the whole model, such as epoch_12.pth')
    add('--out', metavar='FILE', help='the file to write; default: NAME-HEIGHTxWIDTH.onnx, or NAME-dynamic.onnx')
    add('--format', type=_format, default='onnx', help=f'one of {", ".join(SUFFIXES)} (%(default)s)')
    add('--size', type=_size, metavar='HxW', help='512x512 (the default), ...; with --mini that of its images')
    add('--dynamic', action='store_true', help='a file for images of any size')
    add('--what', choices=WHATS, default='model', help='the whole model, or a part that returns maps (%(default)s)')
    add('--input', choices=INPUTS, help='take images (the default), or normalized tensors')
    add('--score-thr', type=float, metavar='S', help='lowest score of an object; default: that of the config')
    add('--max-boxes', type=_positive, metavar='N', help='most objects of an image; default: that of the config')
    add('--logits', action='store_true', help='segmentation: return logits in place of classes')
    add('--images', type=_positive, metavar='N', help=f'test images that AP or mIoU is measured on ({IMAGES})')
    add('--no-metrics', action='store_true', help='compare a few images only, without AP or mIoU')
    add('--with-resize', action='store_true', help='resize images in the file, which takes them as they are')
    add('--masks', choices=MASKS, default=MASKS[0], help='masks as grids over their boxes (%(default)s), or as images')
    add('--int8', action='store_true', help='also write NAME-int8.onnx, calibrated on training images')
    add('--max-drop', type=float, default=0.01, metavar='D', help='largest loss of AP by --int8 (%(default)s)')
    add('--with-predictor', action='store_true', help='also write predict.py, which runs the file without mmplugin')
    add('--mini', action='store_true', help='the checkpoint was trained with --mini')
    add_data_arguments(parser)
    add('--cfg-options', nargs='+', action=CfgOptions, help='other settings of the config: key=value')
    add('--trust', action='store_true', help='run code that checkpoints may contain; only for files you trust')
    return parser.parse_args(argv)


def _format(text: str) -> str:
    if text not in SUFFIXES:
        raise argparse.ArgumentTypeError(f'{text}: this version writes {", ".join(SUFFIXES)}')
    return text


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 32 <= min(sides) <= max(sides) <= export.LARGEST:
        raise argparse.ArgumentTypeError(
            f'{text}: expected height x width, such as 480x640, or one number for both; 32 to {export.LARGEST}'
        )
    return sides


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: expected a whole number from 1')
    return int(text)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return 0 if the file is proven."""
    options = parse(argv, prog)
    _refuse_impossible(options)
    export.require_packages(options.format)
    cfg = load_config(
        options.config,
        mini=options.mini,
        data_root=options.data_root,
        classes=options.classes.split(',') if options.classes else None,
        data_options=data_options(options),
        cfg_options=options.cfg_options,
    )
    mobile.refuse_detector(options.format, options.what, is_segmentation(cfg))
    from mmplugin import Predictor

    predictor = Predictor(cfg, options.checkpoint, device='cpu', trust=options.trust)
    Exporter(options, cfg, predictor).run()
    return 0


def _refuse_impossible(options: argparse.Namespace) -> None:
    """Raise a ``UserError`` for options that contradict each other, before anything is loaded."""
    part = options.what != 'model'
    mobile.refuse_impossible(options.format, options.dynamic, options.input == 'image', options.int8)
    if part and options.input == 'image':
        raise UserError(f'--what {options.what} takes tensors; omit --input image')
    for name in ('score_thr', 'max_boxes', 'logits'):
        if part and getattr(options, name) not in (None, False):
            raise UserError(f'--{name.replace("_", "-")} is for whole models; omit it with --what {options.what}')
    if options.out and Path(options.out).suffix != SUFFIXES[options.format]:
        raise UserError(
            f'--out {options.out}: a file of the format {options.format} must end in {SUFFIXES[options.format]}'
        )
    if options.int8 and (options.format != 'onnx' or part or options.input == 'tensor' or options.logits):
        raise UserError(
            '--int8 is for whole models that take images, in the format onnx: its loss is measured as AP or mIoU; omit '
            '--format, --what, --input and --logits, or --int8'
        )
    if options.int8 and options.no_metrics:
        raise UserError('--int8 is only useful with its loss of AP or mIoU; omit --no-metrics')
    if options.with_predictor:
        if part or options.input == 'tensor' or options.format not in ('onnx', 'openvino'):
            raise UserError('--with-predictor is for whole models that take images, in the formats onnx and openvino')
        target = Path(options.out or '.').parent / PREDICTOR
        if target.exists() and not target.read_bytes().startswith(_predictor_source().splitlines()[0]):
            raise UserError(f'--with-predictor: {target} exists and is another program; choose another folder by --out')
    takes_images = not part and options.input != 'tensor'
    if options.with_resize and (not takes_images or options.logits or options.format not in ('onnx', 'openvino')):
        raise UserError(
            '--with-resize is for whole models that take images, in the formats onnx and openvino; omit --what, '
            '--input and --logits, or --with-resize'
        )
    if options.masks == 'full' and not takes_images:
        raise UserError('--masks full is for whole models that take images; omit --what and --input, or --masks full')
    if options.score_thr is not None and not 0 <= options.score_thr <= 1:
        raise UserError(f'--score-thr {options.score_thr}: expected a number from 0 to 1')


def _predictor_source() -> bytes:
    """Return the module that runs exported files alone."""
    return Path(__file__).with_name('predictor.py').read_bytes()


class Exporter:
    """One run of the command.

    Args:
        options: The parsed arguments.
        cfg: The config.
        predictor: The trained model.
    """

    def __init__(self, options: argparse.Namespace, cfg: Any, predictor: Any):
        from mmplugin.deploy.samples import resize_rule

        self.options, self.cfg, self.predictor = options, cfg, predictor
        self.console = Console(highlight=False)
        self.rule = resize_rule(cfg)
        self.is_mobile = options.format in mobile.FORMATS
        self.data = self._find_data()
        path = Path(options.config)
        self.name = path.resolve().parent.name if path.stem == 'config' else path.stem  # of a search
        size = options.size or self._default_size()
        self.choice = Choice(
            what=options.what,
            input=options.input or ('image' if options.what == 'model' and not self.is_mobile else 'tensor'),
            size=size,
            dynamic=options.dynamic,
            score_threshold=options.score_thr,
            max_boxes=options.max_boxes,
            logits=options.logits or (options.what == 'model' and self.is_mobile),
            full_masks=options.masks == 'full',
            resizes=options.with_resize,
        )
        label = 'dynamic' if options.dynamic else f'{size[0]}x{size[1]}'
        part = '' if options.what == 'model' else f'-{options.what}'
        self.path = Path(options.out or f'{self.name}{part}-{label}{SUFFIXES[options.format]}')

    def _find_data(self) -> Any:
        """Return the test set of the config; parts of a model need none."""
        from mmplugin.deploy.samples import Data
        from mmplugin.engine.test import require_data

        if self.options.what != 'model' and not (self.is_mobile and mobile.runs_here(self.options.format)):
            return None
        require_data(self.cfg)
        return Data(self.cfg, self.options.images or IMAGES)

    def _default_size(self) -> tuple[int, int]:
        if not self.options.mini or self.data is None:
            return DEFAULT_SIZE
        sizes = [sample.image.shape[:2] for sample in self.data.samples()]
        height, width = (ceil_div(max(sides), 32) * 32 for sides in zip(*sizes, strict=True))
        if self.options.dynamic:  # the file works from there on
            least = least_sides(self.predictor.model.backbone, dynamic=True)
            if max(height, width) < least[1]:
                raise UserError(
                    f'--dynamic: this backbone needs images with a side of {least[1]} pixels or more, and the config '
                    f'resizes images to {height}x{width}. Omit --dynamic: files of a fixed size have no such limit'
                )
        return height, width

    def run(self) -> None:
        """Write the file, compare it with PyTorch, and print the result."""
        from mmplugin.deploy.runtimes import Pt2, open_file

        found = traceable(
            self.predictor.model, self.predictor.classes, self.choice, self.name, self.options.checkpoint, self.rule
        )
        self.console.print(f'Exporting {escape(str(self.path))}', soft_wrap=True)
        kind = self.options.format
        program = export.program_of(found)
        with draft(self.path, BESIDE.get(kind, ())) as path:
            export.write(program, found, kind, path)
            if not mobile.runs_here(kind):
                self.console.print(f'Not proven: {escape(str(self.path))} runs on macOS only', soft_wrap=True)
                return
            run = Pt2(path, found.outputs) if kind == 'pt2' else open_file(path, RUNTIME[kind])
            proof = self._prove(run, found)
            show([self._table(proof, found.metadata, path)], self.console)
            if proof.problems:
                raise UserError(
                    f'{self.path} was not written, because its answers would not be those of PyTorch: '
                    f'{"; ".join(proof.problems)}'
                )
        self.console.print(f'Proven: {escape(str(self.path))}', soft_wrap=True)
        if self.options.with_predictor:
            with draft(self.path.with_name(PREDICTOR)) as module:
                module.write_bytes(_predictor_source())
            self.console.print(f'Run it: python {PREDICTOR} {escape(self.path.name)} IMAGE...', soft_wrap=True)
        if self.options.int8:
            self._quantize(run, proof, found.metadata)

    def _quantize(self, run: Any, proof: Proof, metadata: Metadata) -> None:
        """Write the file in 8 bits, measure what it costs, and print it."""
        from mmplugin.deploy.quantize import calibration_data, prove_int8, write_int8
        from mmplugin.deploy.runtimes import OnnxRuntime
        from mmplugin.deploy.samples import file_inputs

        path = self.path.with_name(f'{self.path.stem}-int8.onnx')
        images = calibration_data(self.cfg)
        if not metadata.dynamic:
            images.fit_(metadata.size)
        with draft(path) as start:
            write_int8(self.path, (file_inputs(sample, metadata) for sample in images.samples()), metadata, start)
            result = prove_int8(OnnxRuntime(start), run, proof, self.data, metadata, self.options.max_drop)
            bytes_, before = start.stat().st_size, self.path.stat().st_size
            rows = [('file', f'{bytes_ / 1e6:.1f} MB', f'{before / 1e6:.1f} MB')]
            rows += _metric_rows(result)
            show([Table(f'{path.name}, {result.images} images', ('', 'int8', 'float32'), rows)], self.console)
            if result.problems:
                raise UserError(f'{path} was not written: {"; ".join(result.problems)}. {self.path} is in float32')
        self.console.print(f'Proven: {escape(str(path))}', soft_wrap=True)

    def _prove(self, run: Any, found: Traceable) -> Proof:
        from mmplugin.deploy.samples import Reference

        runtime = f'{run.name} {run.version}'
        if found.metadata.input == 'tensor' or found.metadata.logits:
            return prove_numbers(run, runtime, found, self._tensors(found) if self.is_mobile else None)
        if not found.metadata.dynamic:
            self.data.fit_(found.metadata.size)
        reference = Reference(self.predictor.model, None if found.metadata.dynamic else found.metadata.size)
        resize = None
        if found.metadata.resizes:
            from mmplugin.deploy.resizing import resizer

            resize = resizer(found.metadata, RUNTIME[self.options.format])
        return prove(run, runtime, reference, self.data, found.metadata, not self.options.no_metrics, resize)

    def _tensors(self, found: Traceable) -> list[Any]:
        """Return images of the test set as a file for tensors takes them."""
        from mmplugin.deploy.samples import tensors

        return list(tensors(self.data, self.predictor.model, found.metadata.size, COMPARED))

    def _table(self, proof: Proof, metadata: Metadata, path: Path) -> Table:
        """Return what was measured of the file ``path``."""
        files = [path, *(path.with_suffix(suffix) for suffix in BESIDE.get(self.options.format, ()))]
        size = sum(file.stat().st_size for file in files)
        rows = [('file', f'{size / 1e6:.1f} MB', '')]
        for name, error in proof.file.errors.items():
            unit = ' px' if name == 'boxes' and metadata.input == 'image' else ''
            rows.append((f'largest error of {name}', f'{error:.2g}{unit}', ''))
        by_number = metadata.input == 'tensor' or metadata.logits
        unit = 'results' if by_number else 'pixels' if metadata.kind == 'classes' else 'objects'
        rows.append((f'{unit} that differ', f'{proof.file.lost} of {proof.file.total}', str(proof.noise.lost)))
        rows += _metric_rows(proof)
        if metadata.resizes:
            rows += [
                (f'{text}, difference', f'{after - before:+.4f}', '') for _, text, before, after in headlines(proof)
            ]
        images = f', {proof.images} images' if proof.images else ''
        return Table(f'{self.path.name}{images}', ('', proof.runtime, 'PyTorch'), rows)


def _metric_rows(proof: Proof) -> list[tuple[str, str, str]]:
    """Return the metrics and the times of a proof, the file first."""
    rows = []
    for _, text, before, after in headlines(proof):
        digits = 3 if 'AP' in text else 2
        rows.append((text, f'{after:.{digits}f}', f'{before:.{digits}f}'))
    return [*rows, ('ms', f'{proof.milliseconds[1]:.0f}', f'{proof.milliseconds[0]:.0f}')]
