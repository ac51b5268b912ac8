"""Fuzz the readers of checkpoints, annotations, masks and layouts.

``python tests/fuzz/run.py --seconds 600 --seed 0`` mutates valid files and reads each in a process of its own. Allowed
are success and a message for the user. Everything else fails: another exception, a crash, more than 1.5 GB of memory,
more than 20 seconds, code of the file that runs, control characters in a message. Failing files are written to
``--failures``; after the fix they belong into the corpus, which ``tests/fuzz/test_corpus.py`` reads.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder tests, as pytest does

import torch
from fuzz.layouts import LAYOUT_TARGETS
from fuzz.mutations import mutate
from fuzz.targets import CANARY, FILE_TARGETS
from fuzz.text_mutations import mutate_layout

from mmplugin.convert.untrusted import check_memory

CORPUS = Path(__file__).parent / 'corpus'
MEMORY = 1500 << 20  # bytes that reading a file may take
ADDRESSES = 6 << 30  # bytes that it may ask for, most of which nothing may touch
SECONDS = 20
PROCESSES = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'socket.connect')
FAILED = 'FAILED'
TARGETS = FILE_TARGETS | LAYOUT_TARGETS


def attempt(kind: str, content: bytes, folder: str) -> tuple[str, str]:
    """Read a file in this process; return the outcome and its details."""
    os.chdir(folder)
    events = os.open('events', os.O_CREAT | os.O_RDWR | os.O_APPEND)  # a file, which forked processes share
    sys.addaudithook(lambda event, _: record(event, events) if event in PROCESSES else None)
    size, before = (int(number) * resource.getpagesize() for number in Path('/proc/self/statm').read_text().split()[:2])
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
    try:
        outcome = 'read', TARGETS[kind].read(content)
    except BaseException as error:
        outcome = FAILED, ''.join(traceback.format_exception(error))[-3000:]
    executed = os.pread(events, 1000, 0).decode().split()
    if executed or Path(CANARY).exists():
        outcome = FAILED, f'the file was executed: {executed}'
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if used > MEMORY:
        outcome = FAILED, f'{used / 1e6:.0f} MB'
    return outcome


def record(event: str, events: int) -> None:
    """Write an event, unless it is the fork in which the reader tries a file."""
    caller = sys._getframe(2).f_code  # below this function and the hook
    if event != 'os.fork' or caller is not check_memory.__code__:
        os.write(events, f'{event}\n'.encode())


def read_in_child(kind: str, content: bytes) -> tuple[str, str]:
    """Read a file in a forked process with limits; return the outcome and its details."""
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries print there
            os.write(sender, json.dumps(attempt(kind, content, folder)).encode()[:60_000])
            os._exit(0)
        os.close(sender)
        answered = select.select([receiver], [], [], SECONDS)[0]
        answer = os.read(receiver, 1 << 16) if answered else b''
        os.close(receiver)
        if not answered:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not answered:
            return FAILED, f'took more than {SECONDS} seconds'
        return tuple(json.loads(answer)) if answer else (FAILED, f'the process died with status {status}')


def signature(kind: str, outcome: str, details: str) -> str:
    """Return the outcome without numbers and names, so that equal outcomes of different files are equal."""
    if outcome == FAILED:
        frames = re.findall(r'File "[^"]*?([\w/]+\.py)", line (\d+)', details)
        return f'{FAILED} {kind.partition("-")[0]} {frames[-3:]} {details.strip().splitlines()[-1][:100]}'
    plain = re.sub(r"'[^']*'|\d+|\([^)]*\)|[\w.]*\.[\w.]+", '', details)
    return f'{kind.partition("-")[0]} {plain[:160]}'


def save(folder: Path, kind: str, content: bytes) -> Path:
    """Write a case; the name says its kind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{kind}.{hashlib.sha256(content).hexdigest()[:10]}.gz'
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


def fuzz(kinds: Sequence[str], seconds: float, seed: int, failures: Path, corpus: Path | None) -> Counter:
    """Read mutated files until the time is over; return the number of files by signature."""
    seen: Counter = Counter()
    valid = {kind: TARGETS[kind].valid() for kind in kinds}
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        random = Random(f'{seed}-{number}')
        kind = kinds[number % len(kinds)]
        content = (mutate_layout if kind in LAYOUT_TARGETS else mutate)(kind, valid[kind], random)
        outcome, details = read_in_child(kind, content)
        found = signature(kind, outcome, details)
        seen[found] += 1
        if seen[found] == 1 and outcome == FAILED:
            say(f'case {number}: {save(failures, kind, content)}\n{details}')
        elif seen[found] == 1 and corpus:
            save(corpus, kind, content)
        number += 1
    return seen


def replay(paths: Sequence[Path]) -> list[str]:
    """Read stored cases; return those that fail."""
    failed = []
    for path in paths:
        outcome, details = read_in_child(path.name.partition('.')[0], gzip.decompress(path.read_bytes()))
        if outcome == FAILED:
            failed.append(f'{path.name}: {details}')
    return failed


def warm_up(folder: Path) -> None:
    """Read the valid files in this process, so that the forked ones find everything imported and computed."""
    before = Path.cwd()
    for kind, target in TARGETS.items():
        if 'hostile' not in kind:
            (folder / kind).mkdir()
            os.chdir(folder / kind)
            details = target.read(target.valid())
            if details not in ('converted', 'no findings'):
                raise SystemExit(f'the valid file of {kind} is not accepted: {details}')
    os.chdir(before)


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + '\n')
    sys.stdout.flush()


def main() -> int:
    """Run the command; return 1 if a file failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=600, help='how long to run (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other files')
    parser.add_argument('--kinds', nargs='+', choices=TARGETS, default=list(TARGETS), help='kinds of files')
    parser.add_argument('--failures', type=Path, default=Path('work_dirs/fuzz'), help='folder for failing files')
    parser.add_argument('--corpus', type=Path, help='folder for one file of every other outcome')
    parser.add_argument('--replay', nargs='+', type=Path, metavar='FILE', help='read stored files instead')
    args = parser.parse_args()
    torch.set_num_threads(1)  # forked processes do not have the threads of this one
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder))
    if args.replay:
        failed = replay(args.replay)
        say('\n'.join(failed) or f'{len(args.replay)} files read, none failed')
        return int(bool(failed))
    seen = fuzz(args.kinds, args.seconds, args.seed, args.failures, args.corpus)
    for found, count in seen.most_common():
        say(f'{count:6d} {found}')
    failed = sum(count for found, count in seen.items() if found.startswith(FAILED))
    say(f'{seen.total()} files, {len(seen)} different outcomes, {failed} files failed')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
