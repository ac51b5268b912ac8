"""Memory of the process."""

import ctypes
import sys
from functools import cache
from typing import Any


def release_freed_memory() -> None:
    """Return freed memory to the system.

    Images of many sizes leave gaps that glibc keeps for later, so that a process seems to grow. Does nothing with
    other C libraries.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    if not sys.platform.startswith('linux'):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, 'malloc_trim') else None
