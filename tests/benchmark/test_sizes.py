"""Parameters and multiply-adds: the papers', and the table in the docs."""

from pathlib import Path

import pytest

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.sizes import PAPERS, head_parameters, macs, parameters, rows, without_data


def test_counts_are_those_of_the_papers():
    for cls in FAMILIES.values():
        for arch in cls.ARCHS:
            model = without_data(cls, arch)
            published, published_macs = PAPERS[arch]
            # the papers round
            assert (parameters(model) + head_parameters(model)) / 1e6 == pytest.approx(published, rel=0.03)
            assert macs(model, 224, 224) / 1e9 == pytest.approx(published_macs, rel=0.02)


def test_the_table_in_the_docs_is_up_to_date():
    text = (Path(__file__).parents[2] / 'docs' / 'backbones.md').read_text()
    assert [line for line in rows() if line not in text] == [], 'run: python -m mmplugin.benchmark.sizes --write'
