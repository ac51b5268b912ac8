"""Run a function of a test file in two processes."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import faults.processes  # noqa: F401  lets new processes start with everything imported
from torch import multiprocessing


def run_in_two_processes(function: Callable, *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in two new processes.

    They load the test file by its path. Its module name may belong to a package called ``tests`` that is installed.
    """
    call = function.__code__.co_filename, function.__name__, *arguments
    multiprocessing.start_processes(_call, call, nprocs=2, start_method='forkserver')


def _call(rank: int, path: str, name: str, *arguments: Any) -> None:
    spec = importlib.util.spec_from_file_location('tests_of_this_process', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, name)(rank, *arguments)
