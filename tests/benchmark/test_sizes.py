"""Parameters and multiply-adds equal the papers' figures, and the page that lists them is up to date."""

import sys
from pathlib import Path

import pytest

from mmplugin.benchmark.published import PUBLISHED

sys.path.insert(0, str(Path(__file__).parents[2] / 'docs' / 'scripts'))
import backbone_sizes
from markers import read_between


def test_counts_equal_those_of_the_papers():
    counts = backbone_sizes.count(backbone_sizes.SIZES[:1])
    assert list(counts) == list(PUBLISHED)
    for name, count in counts.items():
        # the papers round
        assert count.with_head / 1e6 == pytest.approx(PUBLISHED[name].parameters, rel=0.03)
        assert count.macs[0] / 1e9 == pytest.approx(PUBLISHED[name].gmacs, rel=0.02)


@pytest.mark.slow
def test_the_table_in_the_docs_is_up_to_date():
    counts = backbone_sizes.count()
    page = read_between(backbone_sizes.PAGE, 'sizes')
    assert page == backbone_sizes.table(counts), 'run: python docs/scripts/backbone_sizes.py'
