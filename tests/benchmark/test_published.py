"""Configs and documentation give the same published figures as the package, and the pages the stored measurements."""

import re
import sys
from pathlib import Path

import pytest

from mmplugin.benchmark.published import PUBLISHED, accuracies_of
from mmplugin.benchmark.results import Results

sys.path.insert(0, str(Path(__file__).parents[2] / 'docs' / 'scripts'))
import performance
from markers import read_between

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path for folder in ('detection', 'segmentation') for path in sorted((ROOT / 'configs' / folder).glob('*.py'))
]
WEIGHTS = {'v1': 'efficientformer_', 'v2': 'efficientformerv2_', 'evit': 'efficientvit_'}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_of_a_config_gives_the_published_figures(path):
    line = path.read_text(encoding='utf-8').splitlines()[0]
    found = [float(number) for number in re.findall(r'\b\d+\.\d\b', line)]
    assert found == list(accuracies_of(path.stem).values())
    assert ('none' in line) is (not found)


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_weights_page_gives_the_accuracy_of_each_file(name):
    family, _, arch = name.partition('_')
    page = (ROOT / 'docs' / 'weights.md').read_text(encoding='utf-8')
    (row,) = [line for line in page.splitlines() if line.startswith('|') and f'{WEIGHTS[family]}{arch}.' in line]
    found = [float(number) for number in re.findall(r'\b\d\d\.\d\b', row)]
    assert tuple(found) == PUBLISHED[name].weights_top1


def test_the_performance_page_has_the_stored_measurements():
    measured = Results.from_json(performance.DATA)
    for name, text in (('summary', performance.summary(measured)), ('tables', performance.details(measured))):
        assert read_between(performance.PAGE, name) == text, 'run: python docs/scripts/performance.py'
    stored = {model.name: model.published for model in measured.models if not model.name.startswith('timm:')}
    assert stored == {name: row.accuracy for name, row in PUBLISHED.items()}
