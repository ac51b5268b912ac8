"""The command ``mmplugin``: a menu of subcommands, each the ``main`` of a module imported on demand."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mmplugin import __version__, stack
from mmplugin.errors import UserError


class Command(NamedTuple):
    """One line of the menu."""

    target: str  # module:function
    takes: str
    summary: str


COMMANDS = {
    'train': Command('mmplugin.engine.train:main', 'CONFIG [--mini]', 'train, evaluate, write report.html'),
    'test': Command('mmplugin.engine.test:main', 'CONFIG CHECKPOINT', 'measure AP or mIoU of a checkpoint'),
    'convert': Command('mmplugin.convert.command:main', 'SRC DST', 'classification weights to backbone weights'),
    'check-data': Command('mmplugin.engine.check_data:main', 'CONFIG', "look for mistakes in a config's data set"),
    'benchmark': Command('mmplugin.benchmark.command:main', 'CONFIG', 'measure speed and memory'),
    'doctor': Command('mmplugin.doctor:main', '', 'is this environment healthy, and if not, what mends it'),
}


def menu() -> str:
    """Write what ``mmplugin --help`` shows."""
    calls = {f'mmplugin {name} {command.takes}'.rstrip(): command.summary for name, command in COMMANDS.items()}
    width = max(map(len, calls))
    return '\n'.join([
        f'mmplugin {__version__}: fast small vision transformers for OpenMMLab',
        '',
        *(f'  {call:<{width}}   {summary}' for call, summary in calls.items()),
        '',
        'CONFIG is a file, or the name of a config that comes with mmplugin: maskrcnn_v2_s2, semfpn_evit_m4, ...',
        'The first run:  mmplugin train maskrcnn_v2_s2 --mini     (no data, no weights, no GPU needed)',
        '`mmplugin COMMAND --help` explains one command; `mmplugin --version` prints the version.',
        '',
    ])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        int: The exit code: 0, what the command returned, 2 for something the user can mend, 130 for Ctrl-C.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ['--help']
    if name in ('-h', '--help', 'help'):
        sys.stdout.write(menu())
        return 0
    if name in ('-V', '--version'):
        sys.stdout.write(f'mmplugin {__version__}\n')
        return 0
    try:
        if name not in COMMANDS:
            raise UserError(f"mmplugin has no command '{name}', only {', '.join(COMMANDS)}. See `mmplugin --help`.")
        return _run(name, rest)
    except UserError as error:
        sys.stderr.write(f'mmplugin {name}: {error}\n' if name in COMMANDS else f'{error}\n')
        return 2
    except KeyboardInterrupt:
        sys.stderr.write('\nStopped.\n')
        return 130


def _run(name: str, argv: list[str]) -> int:
    stack.quiet_known_noise()
    before = sys.argv
    # The parsers of the subcommands take their program's name from here.
    sys.argv = [_program(name, before[0]), *argv]
    try:
        return _load(name)(argv) or 0
    finally:
        sys.argv = before


def _program(name: str, script: str) -> str:
    """Keep ``train.py`` as the usage line's program where that is what was typed."""
    return script if script.endswith('.py') and Path(script).resolve().parent.name == 'tools' else f'mmplugin {name}'


def _load(name: str) -> Callable[[list[str]], int | None]:
    if stack.IMPORT_ERROR is not None and name != 'doctor':
        raise UserError(f'this environment is not complete: {stack.IMPORT_ERROR}. See `mmplugin doctor`.')
    module, _, function = COMMANDS[name].target.partition(':')
    return getattr(import_module(module), function)


if __name__ == '__main__':
    sys.exit(main())
