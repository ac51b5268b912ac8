"""Commands in processes of their own, which can be killed and get signals."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Python 3.11 does not pass sys.path to the server.
os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), *os.environ.get('PYTHONPATH', '').split()])
_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(['faults.warm_imports'])


class Command:
    """A running ``mmplugin`` command, in its own process group.

    Args:
        arguments: The command line.
        log: File for what it prints.
        environment: Additional variables.
    """

    def __init__(self, arguments: Sequence, log: Path, **environment: str):
        self.log = log
        environment = {'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1')} | environment
        self.process = _SERVER.Process(target=_run, args=(list(map(str, arguments)), log, environment))
        self.process.start()

    def send(self, number: signal.Signals, group: bool = False) -> None:
        """Send a signal to the process, or also to its workers, as a terminal and schedulers do."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> None:
        """``kill -9``."""
        if self.process.is_alive():
            self.send(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end and return the exit code; that of a killed process is the negative signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f'still running after {seconds} s: {self.printed()}'
        return self.process.exitcode

    def wait_until(self, condition: Callable[[], object], seconds: float = 300) -> bool:
        """Wait until the condition holds; return False if the process ends before."""
        until = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive():
                return bool(condition())
            assert time.monotonic() < until, self.printed()
            time.sleep(0.001)
        return True

    def printed(self) -> str:
        """What the command printed."""
        return self.log.read_text(errors='replace') if self.log.exists() else ''

    def living_processes(self) -> list[int]:
        """The processes of its group that are not ended."""
        found = []
        for stat in Path('/proc').glob('[0-9]*/stat'):
            try:
                state, _, group = stat.read_text().rpartition(')')[2].split()[:3]
            except OSError:
                continue
            if int(group) == self.process.pid and state != 'Z':
                found.append(int(stat.parent.name))
        return found


def _run(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    with log.open('wb') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from mmplugin.cli import main

    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))  # the server has loaded it with one
    sys.exit(main(arguments))


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a file."""
    return '\n'.join(path.read_text(errors='replace').splitlines()[-lines:])
