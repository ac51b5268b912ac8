"""``mmplugin search``: find the network that fits a budget on the user's machine."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mmplugin.benchmark.command import PASSIVE_THREADS, device, mode, size
from mmplugin.benchmark.command import count as positive
from mmplugin.config_edits import is_classification, is_segmentation
from mmplugin.engine.arguments import add_common_arguments, config_from
from mmplugin.errors import UserError
from mmplugin.search.budget import QUANTITIES, Budget, Quantity
from mmplugin.search.conditions import RUNTIMES
from mmplugin.search.other_archs import family_of, start_from

METHODS = ('joint', 'slim', 'prune')  # of EfficientFormerV2, EfficientFormer and EfficientViT
DEFAULT_METHODS = {'v1': 'slim', 'v2': 'joint', 'evit': 'prune'}
SUPERNET_ONLY = ('steps', 'exact', 'targets', 'grow')
SIZE = (512, 512)
# What the built-in sets of --mini are tested at, by whether the config is for segmentation.
MINI_SIZES = {False: (192, 224), True: (160, 160)}
SEARCH_ONLY = (
    *SUPERNET_ONLY, 'method', 'by', 'checkpoint', 'start', 'recover', 'images', 'resume', 'latency_table', 'probes',
)  # fmt: skip
TARGETS = tuple(quantity.option for quantity in QUANTITIES.values())


def parse(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage='%(prog)s CONFIG [CHECKPOINT] --target-latency 20ms|60% [options]'.replace('60%', '60%%'),
        description='Find the network that fits a budget on this machine. --rank-only measures the thirteen published '
        'networks in the model of CONFIG; --method prune removes what the trained network needs least.',
    )
    # fmt: off
    add_common_arguments(parser)
    add = parser.add_argument
    add('checkpoint', nargs='?', metavar='CHECKPOINT', help='a trained model of CONFIG, for --method prune')
    add('--weights', metavar='WHICH', help='weights of the backbone: a file, a URL, hf-hub:OWNER/NAME, or none')

    group = parser.add_argument_group('budget', 'at least one; % is of the network of CONFIG')
    for name, quantity in QUANTITIES.items():
        group.add_argument(quantity.option, dest=f'target_{name}', type=_target(quantity), metavar='N',
            help=f'{quantity.name} of the whole model as deployed: {quantity.example}'.replace('%', '%%'))

    add = parser.add_argument_group('method').add_argument
    add('--method', choices=METHODS,
        help='joint and slim train a supernet and slim it, slim for v1 only; prune removes channels of a trained '
        'network in rounds; default: slim for v1, joint for v2, prune for evit')
    add('--probes', type=Path, metavar='DIR',
        help='write networks as ONNX files to time on another device, for --latency-table, and search nothing')
    add('--rank-only', action='store_true', help='measure the published networks, and search nothing')
    add('--of', choices=('model', 'backbone'), default='model', help='what the budget is for; default: model')
    add('--recover', type=_count, metavar='N',
        help='training steps after each round of pruning, or of each network that is found')
    add('--steps', type=_count, metavar='N', help='training steps of the supernet (joint, slim)')
    add('--exact', action='store_true', help='evaluate all actions before each step, as the paper does (joint)')
    add('--targets', type=_targets, metavar='N,N',
        help='several latencies, such as 40%%,60%%,80%%: a network for each from one supernet (joint, slim)')
    add('--from', dest='start', metavar='ARCH', help='start from another network of the family: s1, l3, ...')
    add('--grow', action='store_true',
        help='start from a larger network: attention in all blocks of stages 3 and 4, and expansions of 4 (v2, joint)')
    add('--images', type=positive, metavar='N', help='training images that networks are compared on')
    add('--by', choices=('importance', 'latency'),
        help='order of pruning: loss per latency gained (the default), or loss alone')
    add('--seed', type=_count, default=0, metavar='N', help='of the search; default: 0')
    add('--resume', action='store_true', help='continue the search in the work folder')

    add = parser.add_argument_group('measurement').add_argument
    add('--size', type=size, metavar='HxW', help='512 (the default), 800x1333, ...; with --mini that of its images')
    add('--batch', type=positive, default=1, metavar='N', help='images per inference; default: 1')
    add('--mode', type=mode, default='fused', metavar='MODE',
        help='eager, or fused (the default), compiled and bf16 joined by +')
    add('--runtime', choices=('torch', *RUNTIMES), default='torch',
        help='measure exported backbones in a runtime instead of PyTorch; with --of backbone; default: torch')
    add('--device', type=device, default='cpu', help='cpu (the default), cuda, cuda:1, ...')
    add('--threads', type=positive, metavar='N', help="of torch; default: torch's own choice")
    add('--rounds', type=positive, default=10, metavar='N', help='at least so many, after two to warm up; default: 10')
    add('--clock', choices=('wall', 'cpu'), default='wall', help='cpu is processor time, for a busy machine')
    add('--latency-table', type=Path, metavar='FILE',
        help='latency.json of an earlier search on this machine, or probes.csv with the times of another device')
    # fmt: on
    return parser.parse_intermixed_args(_with_equals_signs(argv))


def _with_equals_signs(argv: Sequence[str]) -> list[str]:
    """Join targets with negative numbers, which argparse takes for options, so that they get the same message."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] in TARGETS and re.match(r'-[\d.]', word):
            words[-1] += f'={word}'
        else:
            words.append(word)
    return words


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text}: allowed are whole numbers from 0')
    return int(text)


def _target(quantity: Quantity) -> Callable[[str], str]:
    """Return a function that checks a target and returns it as it is."""

    def target(text: str) -> str:
        try:
            quantity.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return target


def _targets(text: str) -> list[str]:
    words = [word.strip() for word in text.split(',')]
    for word in words:
        _target(QUANTITIES['latency_ms'])(word)
    if len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f'{text}: a target occurs twice')
    return words


def _check(options: argparse.Namespace) -> None:
    if options.targets and options.target_latency_ms:
        raise UserError('--targets and --target-latency exclude each other: add the latency to --targets')
    if options.launcher != 'none' and (options.rank_only or options.probes):
        raise UserError(f'--launcher {options.launcher}: measurements run in one process; omit --launcher')
    if options.clock == 'cpu' and options.device != 'cpu':
        raise UserError('--clock cpu counts processor time, which says nothing about a GPU; use --clock wall')
    if options.runtime != 'torch':
        _use_runtime_(options)
    if options.checkpoint and not Path(options.checkpoint).is_file():
        raise UserError(
            f'{options.checkpoint} is not a file; name a checkpoint, such as epoch_12.pth in work_dirs/NAME'
        )
    if options.latency_table and not options.latency_table.is_file():
        raise UserError(f'--latency-table {options.latency_table} is not a file; omit it to measure a table')
    if options.latency_table and not options.targets and not options.target_latency_ms:
        raise UserError('--latency-table has no use without a latency to reach: add --target-latency, or omit it')
    if options.rank_only and (words := _given(options, SEARCH_ONLY)):
        raise UserError(f'--rank-only measures networks with random weights, and has no use for {words}; omit it')


def _use_runtime_(options: argparse.Namespace) -> None:
    if options.mode != 'fused':
        raise UserError(f'--runtime {options.runtime} runs exported networks, and has no use for --mode; omit it')
    if options.rank_only:
        raise UserError(
            f'--rank-only measures in PyTorch; the published networks in {options.runtime}: mmplugin benchmark '
            f'v2_s0 v2_s1 --runtime {options.runtime}'
        )
    if options.launcher != 'none':
        raise UserError(f'--runtime {options.runtime} measures in one process; omit --launcher')
    options.mode = options.runtime


def _choose_method(options: argparse.Namespace, family: str) -> None:
    options.method = options.method or DEFAULT_METHODS[family]
    if options.method == 'slim' and family != 'v1':
        raise UserError(f'--method slim is the method of v1, and this config is of {family}; use joint or prune')
    if options.launcher != 'none' and options.method != 'joint':
        raise UserError(
            f'--launcher {options.launcher}: --method {options.method} runs in one process; omit --launcher'
        )
    allowed = {'joint': SUPERNET_ONLY, 'slim': ('steps', 'targets'), 'prune': ('by',)}[options.method]
    if words := _given(options, [name for name in (*SUPERNET_ONLY, 'by') if name not in allowed]):
        other = 'joint' if options.method == 'prune' or not options.by else 'prune'
        raise UserError(f'--method {options.method} has no use for {words}; omit it, or add --method {other}')
    options.by = options.by or 'latency'


def _given(options: argparse.Namespace, names: Sequence[str]) -> str:
    """Return which of some options are given."""
    flags = {'checkpoint': 'CHECKPOINT', 'start': '--from'}
    given = [name for name in names if getattr(options, name) is not None and getattr(options, name) is not False]
    return ', '.join(flags.get(name, '--' + name.replace('_', '-')) for name in given)


def budget_of(options: argparse.Namespace) -> Budget:
    """Return the budget of the command line."""
    values = {name: getattr(options, f'target_{name}') for name in QUANTITIES}
    if options.targets:  # one of them stands for all: there is a budget for latency
        values['latency_ms'] = options.targets[0]
    return Budget.from_options(*values.values())


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv, prog)
    _check(options)
    if not options.probes:
        budget = budget_of(options)
    if options.clock == 'cpu':
        os.environ.update(PASSIVE_THREADS)
    options.command = shlex.join(['mmplugin', 'search', *argv])
    if options.rank_only or options.probes:
        options.weights = 'none'  # speed does not depend on them
    cfg = config_from(options)
    if is_classification(cfg):
        raise UserError(f'{options.config} is a classifier; use a detector or segmentor, such as retinanet_v2_s0')
    family = family_of(cfg.model.backbone)
    options.size = options.size or (MINI_SIZES[is_segmentation(cfg)] if options.mini else SIZE)
    if options.probes:
        from mmplugin.search.probes import run_probes

        return run_probes(cfg, options)
    if options.rank_only:
        from mmplugin.search.rank import run_rank

        return run_rank(cfg, options, budget)
    _choose_method(options, family)
    if options.start or options.grow:
        cfg = start_from(cfg, options)
    from mmplugin.search.methods import run_search

    return run_search(cfg, options, budget)
