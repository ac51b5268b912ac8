"""Budgets: what the options mean, and what they refuse."""

import pytest

from mmplugin.errors import UserError
from mmplugin.search import Budget, Figures

START = Figures(latency_ms=40.0, params=10e6, macs=5e9, memory=100 * 2**20)


def test_numbers_and_shares_of_the_start():
    budget = Budget.from_options('20ms', '80%', '2.5G', '50%', start=START)
    assert budget.limits() == {'latency_ms': 20.0, 'params': 8e6, 'macs': 2.5e9, 'memory': 50 * 2**20}
    units = Budget.from_options(params='800K', macs='300M', memory='1GiB').limits()
    assert units == {'params': 8e5, 'macs': 3e8, 'memory': 2**30}


def test_shares_wait_for_the_start():
    budget = Budget.from_options('60%')
    assert str(budget) == 'latency 60% of the start'
    with pytest.raises(ValueError, match='of_start'):
        budget.limits()
    assert budget.of_start(START) == Budget(latency_ms=24.0)


def test_a_limit_is_unmet_above_it_and_met_at_it():
    budget = Budget(latency_ms=40.0, params=9e6)
    assert budget.unmet(START) == ['params']
    assert str(budget) == 'latency 40 ms, parameters 9 M'


@pytest.mark.parametrize(
    'text', ['20', '20s', '-3ms', '0%', '140%', '0ms', 'ms', '1e3ms', 'nanms', 'infms', '', '2 0ms']
)
def test_other_latencies_are_refused(text):
    with pytest.raises(UserError, match=r'--target-latency .*: allowed are 20ms or 60% \(of the start\)'):
        Budget.from_options(text)


def test_no_budget_names_the_options():
    with pytest.raises(
        UserError, match='at least one of --target-latency, --target-params, --target-macs and --target-m'
    ):
        Budget.from_options()
