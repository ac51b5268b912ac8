"""The command ``mmplugin``. Each subcommand is the ``main`` function of a module that is imported on demand."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mmplugin import __version__, stack
from mmplugin.errors import UserError, message_of
from mmplugin.text import printable


class Command(NamedTuple):
    """A subcommand: where its ``main(argv, prog)`` is, and what the help says about it."""

    target: str  # module:function
    arguments: str
    summary: str


COMMANDS = {
    'train': Command('mmplugin.engine.train:main', 'CONFIG [--mini]', 'train, evaluate and write report.html'),
    'test': Command('mmplugin.engine.test:main', 'CONFIG CHECKPOINT', 'measure the AP or mIoU of a checkpoint'),
    'predict': Command(
        'mmplugin.engine.predict:main', 'WORK_DIR PATH...', 'predict images, folders, videos or a camera'
    ),
    'convert': Command('mmplugin.convert.command:main', 'SRC DST', 'convert classification weights to a backbone'),
    'check-data': Command('mmplugin.engine.check_data:main', 'CONFIG', 'check the dataset of a config for errors'),
    'benchmark': Command('mmplugin.benchmark.command:main', 'CONFIG', 'measure speed and memory'),
    'search': Command(
        'mmplugin.search.command:main', 'CONFIG --target-latency 20ms', 'find the best network for this machine'
    ),
    'export': Command(
        'mmplugin.deploy.command:main', 'CONFIG CHECKPOINT', 'write a file that runs without PyTorch, and prove it'
    ),
    'doctor': Command('mmplugin.doctor:main', '', 'check the environment and print fixes'),
}


def usage() -> str:
    """Return the text of ``mmplugin --help``."""
    calls = {f'mmplugin {name} {command.arguments}'.rstrip(): command.summary for name, command in COMMANDS.items()}
    width = max(map(len, calls))
    return '\n'.join([
        f'mmplugin {__version__}: fast small vision transformers for OpenMMLab',
        '',
        *(f'  {call:<{width}}   {summary}' for call, summary in calls.items()),
        '',
        'CONFIG is a file, or the name of a config of mmplugin: maskrcnn_v2_s2, semfpn_evit_m4, ...',
        'First run:  mmplugin train maskrcnn_v2_s2 --mini     (needs no dataset, no weights and no GPU)',
        '`mmplugin COMMAND --help` describes a command; `mmplugin --version` prints the version.',
        '',
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code.

    The exit code is the one that the subcommand returns, 2 for an error that the user can fix, or 130 for Ctrl-C.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ['--help']
    if name in ('-h', '--help', 'help'):
        sys.stdout.write(usage())
        return 0
    if name in ('-V', '--version'):
        sys.stdout.write(f'mmplugin {__version__}\n')
        return 0
    prog = _prog(name)
    try:
        if name not in COMMANDS:
            prog = 'mmplugin'
            raise UserError(f"unknown command '{name}'; allowed: {', '.join(COMMANDS)}. See `mmplugin --help`.")
        stack.ignore_known_warnings()
        return _load(name)(rest, prog) or 0
    except UserError as error:
        message = printable(message_of(error), keep='\n')
        sys.stderr.write(f'{prog}: {message}\n')
        return 2
    except KeyboardInterrupt:
        return _stopped()
    except Exception as error:
        if not _is_ctrl_c(error):
            raise
        return _stopped()


def _stopped() -> int:
    sys.stderr.write('\nStopped.\n')
    return 130


def _is_ctrl_c(error: BaseException | None) -> bool:
    """Return whether a library turned Ctrl-C into another error, as mmengine does while it formats a config."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _prog(name: str) -> str:
    """Return the name of the command as it was typed: ``train.py``, or ``mmplugin train``."""
    script = Path(sys.argv[0]).resolve()
    return script.name if script.suffix == '.py' and script.parent.name == 'tools' else f'mmplugin {name}'


def _load(name: str) -> Callable[[Sequence[str], str], int | None]:
    if stack.IMPORT_ERROR is not None and name != 'doctor':
        raise UserError(f'the environment is incomplete: {stack.IMPORT_ERROR}. Run `mmplugin doctor` to see the fix.')
    module, _, function = COMMANDS[name].target.partition(':')
    return getattr(import_module(module), function)


if __name__ == '__main__':
    sys.exit(main())
