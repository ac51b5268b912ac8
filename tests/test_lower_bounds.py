"""The declared lower bound of torch covers every torch API that the package calls.

Only torch 2.13.0 is tested. This file is what stands behind ``torch>=...`` in pyproject.toml: the APIs that are younger
than torch 2.0, each with the first release whose documentation lists it (or a later one where that is not known: only
the highest decides).
"""

import ast
import importlib
import re
from functools import reduce
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]

RELEASES = {
    'torch.OutOfMemoryError': '2.5',
    'torch.SymBool': '2.1',
    'torch.compiler.is_compiling': '2.3',
    'torch.compiler.is_dynamo_compiling': '2.3',
    'torch.compiler.is_exporting': '2.7',
    'torch.export.Dim': '2.7',  # Dim.DYNAMIC with bounds
    'torch.export.export': '2.1',
    'torch.export.load': '2.1',
    'torch.export.save': '2.1',
    'torch.get_autocast_dtype': '2.4',
    'torch.library.custom_op': '2.4',
    'torch.library.get_ctx': '2.4',
    'torch.library.register_fake': '2.4',
    'torch.onnx.export': '2.7',  # of a program, with custom_translation_table
    'torch.serialization.add_safe_globals': '2.7',  # (callable, name) pairs, merged in December 2024; without them 2.4
    'torch.serialization.clear_safe_globals': '2.4',
    'torch.serialization.get_safe_globals': '2.4',
    'torch.serialization.get_unsafe_globals_in_checkpoint': '2.6',
    'torch.utils.flop_counter.FlopCounterMode': '2.1',
}
# Namespaces that grew after torch 2.0: each name used from them needs an entry above.
YOUNG = (
    'torch.accelerator',
    'torch.amp',
    'torch.compiler',
    'torch.export',
    'torch.library',
    'torch.nn.attention',
    'torch.onnx',
    'torch.serialization',
)


def torch_names(source: str) -> set[str]:
    """Return the dotted torch names in a module: attribute chains and what is imported from torch."""
    tree = ast.parse(source)
    bound = {'torch': 'torch'}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'torch' and not node.level:
            for alias in node.names:
                full = f'{node.module}.{alias.name}'
                bound[alias.asname or alias.name] = full
                names.add(full)
        elif isinstance(node, ast.Import):
            bound |= {a.asname: a.name for a in node.names if a.asname and a.name.split('.')[0] == 'torch'}
    for node in ast.walk(tree):
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if attributes and isinstance(node, ast.Name) and node.id in bound:
            names.add('.'.join([bound[node.id], *reversed(attributes)]))
    return names


@pytest.fixture(scope='module')
def used() -> set[str]:
    return set().union(*(torch_names(path.read_text()) for path in (ROOT / 'mmplugin').rglob('*.py')))


def test_names_are_found_however_they_are_imported():
    source = """
import torch.onnx as exporter
from torch import library
from torch.compiler import is_exporting as exporting
def f(x):
    exporter.export(x)
    library.custom_op('a')
    return torch.export.export(x).module()
"""
    assert {
        'torch.onnx.export',
        'torch.library.custom_op',
        'torch.compiler.is_exporting',
    } <= torch_names(source)


def test_every_listed_api_is_used_and_exists(used):
    for name in RELEASES:
        assert name in used, f'{name} is no longer used: remove it from the list'
        module, _, attribute = name.rpartition('.')
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_api_from_a_young_namespace_is_listed(used):
    young = {name for name in used for space in YOUNG if name.startswith(f'{space}.')}
    public = {name for name in young if not any(part.startswith('_') for part in name.split('.'))}
    missing = sorted(
        name for name in public if not any(name == known or name.startswith(f'{known}.') for known in RELEASES)
    )
    assert not missing, f'add the release that introduced each of {missing}, and raise the bound of torch if needed'


def test_the_declared_bound_of_torch_is_the_highest_of_them():
    (declared,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())
    needed = reduce(max, map(Version, RELEASES.values()))
    assert Version(declared) == needed
