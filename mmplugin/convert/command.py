"""The command ``mmplugin convert``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmplugin.errors import UserError

from . import checkpoint_io
from .arch_file import read_arch
from .conversion import OTHERS, Result, convert
from .conversion_report import Report, build_backbone, make_report
from .download import local_path
from .export import export, wrap
from .formats import MMPLUGIN, check_arch
from .verify import LARGEST_SIDE, LEAST_SIDE, SIDE, class_names, verify


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Convert a file and print a report."""
    args = _parser(prog).parse_args(argv)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    arch: str | dict | None = args.arch
    if arch and args.arch.endswith('.json'):
        arch = read_arch(args.arch)[1]
    else:
        check_arch(args.arch)
    checkpoint_io.check_target(args.dst, args.force)
    if args.whole and args.to != MMPLUGIN:
        raise UserError(
            f'--whole cannot be combined with --to {args.to}, which has no neck and heads; omit one of them'
        )
    if Path(args.dst).suffix == checkpoint_io.SAFETENSORS and args.to != 'timm':
        raise UserError(f'{args.dst}: only --to timm writes .safetensors; use a name that ends in .pth')
    try:
        source = local_path(args.src)
        checkpoint = checkpoint_io.read(source, args.trust)
        result = convert(checkpoint, arch, ema=args.ema)
    except UserError as error:
        raise UserError(f'{args.src}: {error}' if str(args.src) not in str(error) else str(error)) from error
    report, classifier = make_report(result, Path(args.src).name, checkpoint_io.sha256(source))
    if args.verify and classifier is None:
        raise UserError(f'--verify: {args.src} has no classification head; use a classification checkpoint')
    content = _content(result, report, args)
    report.show(console, args.dst if args.to == MMPLUGIN and not args.whole else None)
    if classifier is not None and args.verify:
        labels = class_names(args.labels, checkpoint, classifier.num_classes)
        verify(build_backbone(result), classifier, args.verify, labels, console, args.size)
    checkpoint_io.write(args.dst, content, args.force)
    if args.whole:
        arguments = {key: value for key, value in result.backbone.items() if key not in ('type', 'arch')}
        console.print(''.join(f'model.backbone.{key}={value}\n' for key, value in arguments.items()), end='')
    console.print(f'Wrote {args.dst} ({Path(args.dst).stat().st_size / 1e6:.1f} MB, {_kind(args)})')


def _content(result: Result, report: Report, args: argparse.Namespace) -> dict:
    """Return the content of the target file."""
    if args.to != MMPLUGIN:
        exported, notes = export(result, args.to)
        report.notes += notes
        return wrap(exported, args.to)
    weights = result.state_dict
    if args.whole:
        if not result.others:
            raise UserError(f'--whole: {args.src} has no neck and heads; omit --whole')
        report.notes.append(f'{report.dropped.pop(OTHERS)} tensors of {OTHERS} are included')
        weights = {**{f'backbone.{key}': value for key, value in weights.items()}, **result.others}
    meta = {'backbone': report.as_meta()['backbone'], 'report': report.as_meta()}
    json.dumps(meta)  # raises an error unless all values are plain
    content = {'state_dict': weights, 'meta': meta}
    # Not used by the backbone, but by --verify and by the conversion back.
    extras = {'head': result.head, 'imagenet_tables': result.imagenet_tables}
    return {**content, **{key: value for key, value in extras.items() if value}}


def _kind(args: argparse.Namespace) -> str:
    if args.to != MMPLUGIN:
        return f'for {args.to}'
    return 'the whole model, for load_from' if args.whole else 'the backbone, for init_cfg'


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description='Convert published weights to a backbone of mmplugin, or back.'
    )
    parser.add_argument(
        'src',
        metavar='SRC',
        help='checkpoint of the authors, timm, mmpretrain or mmplugin: a file, URL, or hf-hub:NAME',
    )
    parser.add_argument('dst', metavar='DST', help='file to write')
    parser.add_argument(
        '--arch',
        help='expected variant: l1, s0, m4, ..., or a JSON file with an arch (default: recognized from the weights)',
    )
    parser.add_argument(
        '--to', choices=(MMPLUGIN, 'timm', 'original'), default=MMPLUGIN, help='format of DST (default: %(default)s)'
    )
    parser.add_argument('--ema', action='store_true', help='convert the moving average of the weights')
    parser.add_argument('--whole', action='store_true', help='include the neck and heads of a detector or segmentor')
    parser.add_argument('--verify', metavar='FOLDER', help='print the top-1 prediction for every image in FOLDER')
    parser.add_argument(
        '--size', type=_side, default=SIDE, metavar='N', help='side of the images for --verify (default: %(default)s)'
    )
    parser.add_argument('--labels', metavar='FILE', help="class names for --verify: one per line, or timm's .json")
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    parser.add_argument('--trust', action='store_true', help='allow SRC to run code while it is loaded')
    return parser


def _side(text: str) -> int:
    """Parse ``--size``."""
    if not text.isascii() or not text.isdigit() or not LEAST_SIDE <= int(text) <= LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f'{text}: allowed are {LEAST_SIDE} to {LARGEST_SIDE} pixels')
    return int(text)
