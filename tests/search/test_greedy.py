"""The greedy search on planted spaces whose optimum is known, and the space of the joint search."""

import itertools
import random

import numpy as np
import pytest

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError
from mmplugin.search.elastic_space import ElasticSpace
from mmplugin.search.greedy import Drop, Greedy, mobile_efficiency

KNOBS, LEVELS, DRAWS, TARGET = 8, 4, 40, 0.6
STATES = np.array(list(itertools.product(range(LEVELS), repeat=KNOBS)))


class Planted:
    """Knobs with four levels: each saves some cost and adds some loss, whatever the others do."""

    def __init__(self, seed, convex=True, knobs=KNOBS):
        rng = np.random.default_rng(seed)
        drops, saved = (rng.lognormal(0, 1, (knobs, LEVELS - 1)) for _ in range(2))
        if convex:  # the loss per cost rises from level to level
            order = np.argsort(drops / saved, axis=1)
            drops, saved = (np.take_along_axis(values, order, 1) for values in (drops, saved))
        pad = ((0, 0), (1, 0))
        self.drop = np.pad(drops, pad).cumsum(1) / drops.sum()
        self.saved = np.pad(saved, pad).cumsum(1) / saved.sum() * 0.9

    def actions(self, state):
        return {knob: {**state, knob: level + 1} for knob, level in state.items() if level + 1 < LEVELS}

    def loss(self, state):
        return sum(self.drop[int(knob)][int(level)] for knob, level in state.items())

    def cost(self, state):
        return 1 - sum(self.saved[int(knob)][int(level)] for knob, level in state.items())

    def search(self, **options):
        start = {str(knob): 0 for knob in range(len(self.drop))}

        def score(states):
            return [[self.loss(state)] * 2 for state in states]

        greedy = Greedy(self, start, score, {'latency_ms': self.cost}, {'latency_ms': TARGET}, **options)
        steps = []
        while step := greedy.step():
            steps.append(step)
        return greedy, steps

    def all(self):
        """Return the drops and the costs of all states."""
        knobs = np.arange(KNOBS)
        return self.drop[knobs, STATES].sum(1), 1 - self.saved[knobs, STATES].sum(1)


def test_greedy_is_near_the_optimum_of_convex_spaces_and_better_than_as_many_random_networks():
    near = better = 0
    for seed in range(DRAWS):
        planted = Planted(seed)
        greedy, _ = planted.search(exact=True)
        found = planted.loss(greedy.state)
        drops, costs = planted.all()
        assert planted.cost(greedy.state) <= TARGET
        fits = drops[costs <= TARGET]
        near += found <= fits.min() + 0.05
        better += found <= np.random.default_rng(seed).choice(fits, greedy.evaluations).min()
    assert near >= 0.9 * DRAWS
    assert better >= 0.85 * DRAWS


@pytest.mark.parametrize('knobs', [KNOBS, 2 * KNOBS])
def test_the_lazy_form_takes_the_same_steps_with_a_quarter_of_the_evaluations(knobs):
    exact_count = lazy_count = 0
    for seed in range(DRAWS):
        exact, exact_steps = Planted(seed, knobs=knobs).search(exact=True)
        lazy, lazy_steps = Planted(seed, knobs=knobs).search()
        assert [step.action for step in lazy_steps] == [step.action for step in exact_steps]
        exact_count, lazy_count = exact_count + exact.evaluations, lazy_count + lazy.evaluations
    # Each knob must be evaluated once, and each action after the first again: with 8 knobs that is more than a quarter.
    needed = DRAWS * (1 + knobs) if knobs == KNOBS else 0
    assert lazy_count <= exact_count / 4 + needed


def test_scoring_ahead_changes_nothing():
    for seed in range(5):
        one, ahead = Planted(seed, convex=False).search(), Planted(seed, convex=False).search(ahead=3)
        assert one[1] == ahead[1]
        assert one[0].memory() == ahead[0].memory()


def test_units_of_the_mobile_efficiency_score_do_not_change_the_order_of_gains():
    rng, alphas = random.Random(0), {'latency_ms': 1.0, 'params': 0.5}
    costs = [dict(latency_ms=rng.uniform(1, 9), params=rng.uniform(1, 9)) for _ in range(20)]
    orders = []
    for units in (dict(latency_ms=1.0, params=3e6), dict(latency_ms=7.0, params=2.5)):
        scores = [mobile_efficiency(cost, units, alphas) for cost in costs]
        orders.append(sorted(range(20), key=lambda i: scores[i] - scores[0]))
    assert orders[0] == orders[1]
    published = dict(latency_ms=0.9, params=3.5e6)  # EfficientFormerV2-S0 in Table 2
    assert round(mobile_efficiency(published, dict(latency_ms=1.0, params=3e6), alphas), 2) == 102.87


class TwoGoals:
    """One action saves latency, the other one parameters, which cost nothing to the loss."""

    def actions(self, state):
        return {name: {**state, name: n - 1} for name, n in state.items() if n}


def test_a_budget_that_is_met_drops_out():
    start = dict(latency=4, params=4)
    costs = {
        'latency_ms': lambda state: 1 + state['latency'],
        'params': lambda state: 1 + state['params'],
    }

    def score(states):
        return [[4 - state['latency'], 4 - state['latency']] for state in states]

    greedy = Greedy(TwoGoals(), start, score, costs, dict(latency_ms=3, params=4))
    actions = []
    while step := greedy.step():
        actions.append(step.action)
    assert actions == ['params', 'latency', 'latency']


def test_an_action_that_overshoots_waits_until_no_other_one_is_left():
    class Space:
        def actions(self, state):
            return {name: {**state, name: 0} for name, n in state.items() if n}

    def search(floor):
        greedy = Greedy(
            Space(), dict(large=1, small=1), lambda states: [[1 - state['small']] for state in states],
            {'latency_ms': lambda state: 6 + 4 * state['large'] + state['small'] * 1.5}, dict(latency_ms=10),
            floor=floor,
        )  # fmt: skip
        return greedy.step().action

    assert (search(0.0), search(0.95)) == ('large', 'small')


def test_noise_does_not_choose():
    lucky, real = Drop.between([1.0, 1.0, 1.0], [0.6, 1.3, 0.8]), Drop.between([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert lucky.mean < 0 < lucky.value
    assert real.value == 0


GROWN = {  # the largest published networks, with attention and the full expansion in all blocks
    'v1': dict(FAMILIES['v1'].ARCHS['l7']),
    'v2': dict(
        widths=(40, 80, 192, 384), depths=(5, 5, 15, 10), attention_blocks=(15, 10),
        ratios=((4,) * 5, (4,) * 5, (4,) * 15, (4,) * 10),
    ),
}  # fmt: skip


@pytest.mark.parametrize('arch', FAMILIES['v2'].ARCHS)
def test_every_published_network_of_v2_is_in_the_space_below_the_grown_large_one_and_is_reached_by_actions(arch):
    space = ElasticSpace.below('v2', GROWN['v2'])
    wanted = space.state_of(arch)
    assert space.arch(wanted) == FAMILIES['v2'].explicit(arch)
    state, todo = space.largest(), True
    while todo:
        todo = False
        for size, smaller in space.actions(state).items():
            if smaller[size] >= wanted[size] and state[size] > wanted[size]:
                state, todo = smaller, True
                break
    assert space.arch(state) == space.arch(wanted)


@pytest.mark.parametrize(('family', 'arch'), [('v1', 'l3'), ('v2', 's0'), ('evit', 'm0')])
def test_random_networks_are_encoded_and_decoded_and_lie_between_the_smallest_and_the_largest(family, arch):
    space, rng = ElasticSpace.below(family, arch), random.Random(0)
    assert space.arch(space.largest()) == FAMILIES[family].explicit(arch)
    smallest = space.smallest()
    assert not space.actions(smallest)
    for _ in range(20):
        state = space.random(rng)
        explicit = space.arch(state)
        FAMILIES[family].check_arch(explicit)
        assert space.arch(space.state_of(explicit, space.blocks(state))) == explicit
        assert all(smallest[size] <= n for size, n in state.items() if not size.startswith(('block', 'ratio')))
        for size, smaller in space.actions(state).items():
            assert space.arch(smaller) != explicit, size


def test_what_is_fixed_stays():
    space = ElasticSpace.below('v2', 's0', ['width', 'block.3.0'])
    assert not any(size.startswith('width') or size == 'block.3.0' for size in space.actions(space.largest()))
    assert space.arch(space.smallest())['widths'] == (32, 48, 96, 176)
    with pytest.raises(UserError, match=r"fixed is \['colour'\]; allowed: width, ratio, block, attention"):
        ElasticSpace.below('v2', 's0', ['colour'])
    with pytest.raises(UserError, match='is not in the space below'):
        space.state_of('s1')
