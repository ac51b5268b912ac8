"""Checks of a file from a stranger, before and after it is unpickled. Nothing in it is executed."""

import faulthandler
import io
import os
import pickletools
import reprlib
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from mmplugin.errors import UserError
from mmplugin.text import printable

CHUNK = 1 << 20  # bytes read at a time
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
LARGEST_EXPANDED = 1 << 30  # bytes that a tensor may have without storing them, as torch.Tensor.expand() makes it
LONGEST_NAME = 2000  # characters, of a tensor and of all dicts around it
SPARE = 320 << 20  # bytes of memory that reading a file may take beyond twice its size
LONGEST_READ, SLOWEST_READ = 60, 5 << 20  # seconds that reading a file may take, and bytes that add another one
READ, OUT_OF_MEMORY = b'r', b'm'  # what the process that tries to read a file answers
LEGACY_PICKLES = 5  # at the start of a file of torch < 1.6, before the values
# Values that the operations of a pickle may take: some, and some more for each of its bytes.
MOST_TOUCHED, TOUCHED_PER_BYTE = 1_000_000, 20


def check_memory(path: Path, read: Callable[[], object]) -> None:
    """Read a file in a forked process first, and refuse it if that takes too much memory or time, or crashes.

    Some constructors that torch accepts in a checkpoint, such as ``bytearray``, make gigabytes of a few bytes. A limit
    holds for a whole process, so it is set in a process of its own: other threads of this one are not affected. There
    is no check on other systems than Linux. Every other error is left to the caller, who reads the file again.
    """
    if sys.platform != 'linux':
        return
    size = path.stat().st_size
    seconds = LONGEST_READ + size / SLOWEST_READ
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12, of fork beside threads; the child reads only
        child = os.fork()
    if child == 0:
        _read_and_exit(read, 2 * size + SPARE, seconds, sender)
    os.close(sender)
    try:
        said = os.read(receiver, 1)  # nothing if the process was ended
    except BaseException:  # Ctrl-C
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(receiver)
        ended_by = _signal_that_ended(child)
    if said == OUT_OF_MEMORY:
        raise UserError(f'{path} refused: reading it takes more memory than its {size:,} bytes can need')
    if not said and ended_by == 'SIGALRM':
        raise UserError(f'{path} refused: reading it takes more than {seconds:.0f} seconds')
    if not said:
        raise UserError(f'{path} refused: reading it crashes Python ({ended_by})')


def _signal_that_ended(child: int) -> str:
    """Wait for the end of a forked process."""
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:  # the program ignores SIGCHLD, or waits for all processes itself
        return 'or takes too long'
    return signal.Signals(-status).name if status < 0 else ''


def _read_and_exit(read: Callable[[], object], memory: int, seconds: float, sender: int) -> NoReturn:
    """Call ``read`` with this much more memory than the process has now, answer, and end the forked process.

    The alarm ends it also if the process that waits for it was killed.
    """
    answer = READ
    try:
        import resource

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)  # the parent prints every message
        faulthandler.disable()
        reserved = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        now, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = reserved + memory if now == resource.RLIM_INFINITY else min(reserved + memory, now)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        read()
    except MemoryError:
        answer = OUT_OF_MEMORY
    except BaseException as error:
        if "can't allocate memory" in str(error):  # of torch's allocator
            answer = OUT_OF_MEMORY
    finally:
        os.write(sender, answer)
        os._exit(0)


def check_archive(path: Path) -> None:
    """Refuse a checkpoint archive that is compressed or damaged.

    ``torch.save`` never compresses, so a compressed member can only exist to take more memory than the file has bytes.
    The checksum of every member is compared, which ``torch.load`` does not do. Memory use is one chunk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [m.filename for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
            if sum(member.compress_size for member in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile('members overlap')  # comparing their checksums could take days
            for member in () if compressed else archive.infolist():
                with archive.open(member) as content:  # raises BadZipFile at the end if the checksum differs
                    while content.read(CHUNK):
                        continue
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(
            f'{path} is damaged ({printable(str(error)) or type(error).__name__}); download it again or restore a copy'
        ) from error
    if compressed:
        raise UserError(
            f'{path} refused: its member {printable(compressed[0])} is compressed, unlike anything that torch.save '
            'writes, and could expand to any size. Save it again with torch.save'
        )


def pickle_globals(path: Path, limit: int = 1 << 24) -> list[str]:
    """Return the classes and functions that a pickle names, without loading it.

    Files of old versions of torch are several pickles, one after the other.
    """
    with path.open('rb') as file:
        data = io.BytesIO(file.read(limit))
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in chain.from_iterable(iter(lambda: pickletools.genops(data), None)):
            if opcode.name in ('GLOBAL', 'INST'):
                names.append(str(argument).replace(' ', '.'))
            elif opcode.name == 'STACK_GLOBAL' and len(strings) > 1:
                names.append('.'.join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except Exception:  # whatever a damaged or hostile pickle provokes: the names before it count
        return names
    return names


def check_nesting(path: Path) -> None:
    """Refuse pickles whose containers hold the same container again and again.

    A tuple that holds another one twice, forty levels deep, needs 200 bytes, but to be a key of a dict, all of its 2^40
    values are hashed. The operations are counted without running them; a damaged pickle is left to the unpickler.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.lower().endswith('.pkl')]
            bounded = all(_is_bounded(io.BytesIO(archive.read(member))) for member in members)
    else:
        with path.open('rb') as file:
            bounded = all(_is_bounded(file) for _ in range(LEGACY_PICKLES))
    if not bounded:
        raise UserError(f'{path} refused: its values hold each other so often that reading them could take hours')


def _is_bounded(file: BinaryIO) -> bool:
    """Return whether unpickling the next pickle touches few values. The stacks are those of torch's unpickler."""
    stack: list[list[int]] = []  # the number of values: one, and for a container also those that it holds
    outer: list[list[list[int]]] = []  # the stacks below the marks
    memo: dict[Any, list[int]] = {}
    touched = 0
    try:
        for opcode, argument, position in pickletools.genops(file):
            name = opcode.name
            if 'PUT' in name:
                memo[argument] = stack[-1]
            elif 'GET' in name:
                stack.append(memo[argument])
            elif name == 'MARK':
                outer.append(stack)
                stack = []
            else:
                above_mark, count, results = _EFFECTS[name]
                items: list[list[int]] = []
                if above_mark:
                    items, stack = stack, outer.pop()
                items += [stack.pop() for _ in range(count)]
                size = sum(item[0] for item in items)
                touched += size
                if touched > MOST_TOUCHED + TOUCHED_PER_BYTE * (position or 0):
                    return False
                if name in _GROWING:
                    stack[-1][0] += size
                elif results:
                    stack.append([1 + size])
    except Exception:  # whatever a damaged pickle provokes; the unpickler stops there, too
        return True
    return True


_GROWING = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS')
# By operation: whether it takes all values above the last mark, how many it takes below, and how many it returns.
_EFFECTS = {
    opcode.name: (
        pickletools.markobject in opcode.stack_before,
        len([kind for kind in opcode.stack_before if kind not in (pickletools.markobject, pickletools.stackslice)])
        - (opcode.name in _GROWING),  # the container stays
        len(opcode.stack_after),
    )
    for opcode in pickletools.opcodes
}


def check_content(path: Path, content: Any) -> None:
    """Refuse names that a terminal would obey, and tensors that hold no values, or a few bytes for 2^60 elements.

    Attributes that a file set on its dicts and tensors, in place of their methods, are removed.
    """
    if not isinstance(content, Mapping):
        return  # the caller names the type that it expects
    for name, value in _walk(content):
        if len(name) > LONGEST_NAME:
            raise UserError(f'{path} refused: a name has {len(name):,} characters, or values are nested as deeply')
        if not name.isprintable():
            raise UserError(f'{path} refused: the name {printable(name)!r} contains control characters')
        if isinstance(value, torch.Tensor) and (problem := _problem(value)):
            raise UserError(
                f'{path} refused: {printable(name)} is {problem}; expected a dense tensor with its own values'
            )


def _problem(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested or tensor.layout != torch.strided:
        return f'a {"nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")} tensor'
    if tensor.is_meta:
        return 'a meta tensor without values'
    if tensor.is_quantized:
        return 'a quantized tensor'
    if tensor.dtype not in (*REAL, *WHOLE):  # torch can store others, but lacks the operators to check them
        return f'of type {str(tensor.dtype).removeprefix("torch.")}'
    declared, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if declared > max(stored, LARGEST_EXPANDED):
        return f'declared as {" x ".join(map(str, tensor.shape))} elements, but stored in {stored} bytes'
    return None


def _remove_attributes_(value: Any) -> None:
    if isinstance(value, Mapping | torch.Tensor):
        attributes = getattr(value, '__dict__', {})
        for name in attributes.keys() - {'_metadata'}:  # the versions of modules, which torch stores
            del attributes[name]


def _walk(content: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Every value inside dicts, lists and tuples, with its path; cycles are not followed."""
    stack, seen = [(name, content)], set()
    while stack:
        name, value = stack.pop()
        _remove_attributes_(value)
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            stack.extend((f'{name}.{_text(key)}' if name else _text(key), inner) for key, inner in items)
        yield name, value


def _text(key: Any) -> str:
    return str(key) if isinstance(key, str | int) else reprlib.repr(key)  # a tuple may hold a long text many times
