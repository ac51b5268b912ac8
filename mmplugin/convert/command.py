"""The command line of the converter."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmplugin.errors import UserError

from . import checkpoint_io
from .conversion import OTHERS, Result, convert
from .conversion_report import Report, build, make_report
from .export import export, wrap
from .formats import OURS, check_arch
from .verify import class_names, verify


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    check_arch(args.arch)
    checkpoint_io.check_target(args.dst, args.force)
    if args.whole and args.to != OURS:
        raise UserError(f'--whole keeps neck and heads for OpenMMLab; it does not go with --to {args.to}')
    if Path(args.dst).suffix == checkpoint_io.SAFETENSORS and args.to != 'timm':
        raise UserError(f'{args.dst}: only --to timm writes .safetensors; name a .pth file')
    try:
        checkpoint = checkpoint_io.read(args.src, args.trust)
        result = convert(checkpoint, args.arch, ema=args.ema)
    except UserError as error:
        raise UserError(f'{args.src}: {error}' if str(args.src) not in str(error) else str(error)) from error
    report, classifier = make_report(result, Path(args.src).name, checkpoint_io.sha256(args.src))
    if args.verify and classifier is None:
        raise UserError(f'--verify: {args.src} has no classification head; it takes a classification checkpoint')
    content = _content(result, report, args)
    report.show(console, args.dst if args.to == OURS and not args.whole else None)
    if args.verify:
        classes = result.head['head.linear.bias' if result.family == 'evit' else 'head.bias'].shape[0]
        verify(build(result), classifier, args.verify, class_names(args.labels, checkpoint, classes), console)
    checkpoint_io.write(args.dst, content, args.force)
    if args.whole:
        settings = {key: value for key, value in result.backbone.items() if key not in ('type', 'arch')}
        console.print(''.join(f'model.backbone.{key}={value}\n' for key, value in settings.items()), end='')
    console.print(f'Wrote {args.dst} ({Path(args.dst).stat().st_size / 1e6:.1f} MB, {_kind(args)})')


def _content(result: Result, report: Report, args: argparse.Namespace) -> dict:
    """What the target file holds."""
    if args.to != OURS:
        exported, remarks = export(result, args.to)
        report.notes += remarks
        return wrap(exported, args.to)
    weights = result.state_dict
    if args.whole:
        if not result.others:
            raise UserError(f'--whole: {args.src} has no neck and heads; leave --whole out')
        report.notes.append(f'{report.dropped.pop(OTHERS)} tensors of {OTHERS} are kept beside the backbone')
        weights = {**{f'backbone.{key}': value for key, value in weights.items()}, **result.others}
    meta = {'backbone': report.as_meta()['backbone'], 'report': report.as_meta()}
    json.dumps(meta)  # plain values only: this raises where something else slipped in
    content = {'state_dict': weights, 'meta': meta}
    # Not for the backbone: for --verify, and for the way back.
    kept = {'head': result.head, 'imagenet_tables': result.imagenet_tables}
    return {**content, **{key: value for key, value in kept.items() if value}}


def _kind(args: argparse.Namespace) -> str:
    if args.to != OURS:
        return f'for {args.to}'
    return 'the whole model, for load_from' if args.whole else 'the backbone, for init_cfg'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Convert published weights to a backbone of mmplugin, and back.')
    parser.add_argument('src', metavar='SRC', help='checkpoint of the authors, timm, mmpretrain or mmplugin')
    parser.add_argument('dst', metavar='DST', help='file to write')
    parser.add_argument('--arch', help='confirm the variant (l1, s0, m4, ...); it is recognised without')
    parser.add_argument('--to', choices=(OURS, 'timm', 'original'), default=OURS, help='whose names DST has')
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights')
    parser.add_argument('--whole', action='store_true', help='keep neck and heads of a detector (for load_from)')
    parser.add_argument('--verify', metavar='FOLDER', help='print the best class of every picture in FOLDER')
    parser.add_argument('--labels', metavar='FILE', help='class names for --verify: one a line, or .json of timm')
    parser.add_argument('--force', action='store_true', help='overwrite DST')
    parser.add_argument('--trust', action='store_true', help='run code that the pickle in SRC may hold')
    return parser
