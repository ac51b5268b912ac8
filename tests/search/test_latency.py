"""Latency tables on devices that are functions: exact where the table must be exact, and honest where it is not."""

import json
import random
from itertools import product

import numpy as np
import pytest
import torch

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.sizes import multiply_adds
from mmplugin.errors import UserError
from mmplugin.search import LatencyTable
from mmplugin.search.costs import cost
from mmplugin.search.fitted import InSituModel, features
from mmplugin.search.latency import kendall_tau
from mmplugin.search.networks import balanced_archs, random_archs
from mmplugin.search.nnls import nonnegative_least_squares
from mmplugin.search.parts import Part, boundaries, parts_of
from mmplugin.search.timing import Network

SIZE = (64, 96)
ALL = [(family, name) for family in FAMILIES for name in FAMILIES[family].ARCHS]


def linear(part):
    """A device on which a part takes a time that is linear in its features."""
    return 0.05 + sum(1e-5 * value for value in features(part))


@pytest.mark.parametrize('family', FAMILIES)
def test_the_table_of_a_linear_device_predicts_every_network_exactly(family):
    around = next(iter(FAMILIES[family].ARCHS))
    for arch in (None, around):
        table = LatencyTable.measure(family, SIZE, around=arch, clock=linear)
        check = table.check()
        assert check.tau == check.ceiling == 1.0
        assert check.worst_error < 1e-6
    assert table.predict(around) == pytest.approx(sum(map(linear, parts_of(family, around))), rel=1e-6)


def test_measured_parts_keep_their_own_times_and_noise_is_not_extrapolated():
    rng = random.Random(0)
    entries = {
        Part('ffn', 2, (width, hidden)): linear(Part('ffn', 2, (width, hidden))) * rng.uniform(0.9, 1.1)
        for width, hidden in product((32, 48, 64), (64, 128, 256))
    }
    model = InSituModel(entries)
    assert all(model(part) == ms for part, ms in entries.items())
    between = Part('ffn', 2, (40, 96))
    assert model(between) == pytest.approx(linear(between), rel=0.1)
    with pytest.raises(UserError, match='has no times of attention in stage 3; it has ffn in stage 3'):
        model(Part('attention', 2, (32, 32, 128)))


@pytest.mark.parametrize(('family', 'name'), ALL)
def test_multiply_adds_of_all_parts_are_those_of_the_network(family, name):
    backbone = FAMILIES[family](name).eval()
    counted = multiply_adds(backbone, lambda: backbone(torch.zeros(1, 3, 96, 160)))
    assert sum(cost(family, part, (96, 160))[0] for part in parts_of(family, name)) == pytest.approx(counted, rel=1e-3)
    assert [part for part, _ in boundaries(backbone)] == parts_of(family, name)


@pytest.mark.parametrize('family', FAMILIES)
def test_times_of_parts_come_in_the_order_of_the_parts(family):
    """The clock shows how many modules have run: part after part starts where ``boundaries`` says."""
    arch = balanced_archs(family, None)[0]
    network, ran = Network(family, arch, torch.randn(1, 3, *SIZE), 'fused', 'wall', by_part=True), []
    starts = [module for _, module in boundaries(network.backbone)]
    for module in starts:  # these hooks run after those of the clock
        module.register_forward_pre_hook(lambda module, args: ran.append(module))
    network.now = lambda: len(ran) * 10**6
    with torch.inference_mode():
        assert network.times() == [1.0] * len(starts)
    assert list(map(id, ran)) == list(map(id, starts))


@pytest.mark.parametrize('family', FAMILIES)
def test_each_part_occurs_at_least_three_times_in_a_table(family):
    around = FAMILIES[family].explicit(next(iter(FAMILIES[family].ARCHS)))
    for arch in (None, around):
        counts: dict[tuple, int] = {}
        for network in balanced_archs(family, arch):
            for part in parts_of(family, network):
                counts[part] = counts.get(part, 0) + 1
        assert min(counts.values()) >= 3


def test_random_networks_depend_on_the_seed_and_start_with_the_start():
    around = FAMILIES['v2'].explicit('s0')
    assert random_archs('v2', around, 12, 0) == random_archs('v2', around, 12, 0) != random_archs('v2', around, 12, 1)
    assert random_archs('v2', around, 12, 0)[0] == around


def saved(tmp_path, change=lambda content: None):
    path = tmp_path / 'latency.json'
    LatencyTable.measure('v2', SIZE, around='s0', clock=linear).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_table_comes_back_from_its_file(tmp_path):
    path = saved(tmp_path)
    table, again = LatencyTable.measure('v2', SIZE, around='s0', clock=linear), LatencyTable.load(path, size=SIZE)
    arch = random_archs('v2', FAMILIES['v2'].explicit('s0'), 2, 3)[1]
    assert again.predict(arch) == table.predict(arch)
    assert again.check() == table.check()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['conditions'].update(processor='Z80'), 'other conditions than wanted: processor Z80, wanted'),
        (lambda c: c['conditions'].update(torch='1.0'), 'torch 1.0, wanted'),
        (lambda c: c['conditions'].update(mode='eager'), 'mode eager, wanted fused'),
        (lambda c: c['conditions'].update(size=[64, 64]), 'size 64x64, wanted 64x96'),
        (lambda c: c['conditions'].pop('clock'), 'the conditions are'),
        (lambda c: c.update(unit='s'), "the unit of the times is 's'"),
        (lambda c: c.update(kind='other'), 'is no latency table'),
        (lambda c: c['entries'][0].__setitem__(3, -1), 'a time is -1; allowed are numbers above 0, in ms'),
        (lambda c: c['entries'][0].__setitem__(3, True), 'a time is True'),
        (lambda c: c['entries'][0].pop(), 'is damaged'),
        (lambda c: [row.update(ms=row['ms'] / 1e4) for row in c['checks']], 'look like seconds'),
        (lambda c: c.update(entries=[e for e in c['entries'] if e[0] != 'attention']), 'has no times of attention'),
        (lambda c: c['checks'].clear(), None),
    ],
)
def test_a_table_that_does_not_hold_here_is_refused(tmp_path, change, message):
    path = saved(tmp_path, change)
    if message is None:  # complete, but nothing to check it with
        with pytest.raises(UserError, match='has 0 networks to check it with; 12 are the fewest'):
            LatencyTable.load(path).check()
        return
    with pytest.raises(UserError, match=message):
        LatencyTable.load(path, size=SIZE, mode='fused')


def test_a_device_that_the_parts_do_not_explain_fails_the_check():
    rng = random.Random(0)

    def noisy(part):
        return linear(part) * rng.choice((1.0, 1.0, 1.0, 20.0))

    with pytest.raises(
        UserError, match=r'error 8.*the machine is too busy to tell these networks apart; run nothing else'
    ):
        LatencyTable.measure('v2', SIZE, around='s0', clock=noisy).check()


def test_planted_coefficients_are_recovered_and_negative_ones_become_zero():
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = rng.random((40, 8))
        planted = rng.random(8) * (rng.random(8) < 0.6)
        assert np.allclose(nonnegative_least_squares(matrix, matrix @ planted), planted, atol=1e-8)
        target = rng.standard_normal(40)
        found = nonnegative_least_squares(matrix, target)
        gradient = matrix.T @ (matrix @ found - target)  # the conditions of Karush, Kuhn and Tucker
        assert (found >= 0).all()
        assert (gradient >= -1e-8).all()
        assert np.abs(gradient * found).max() < 1e-8


def test_kendalls_tau_of_hand_worked_orders():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(family='v3'), "there is no family 'v3'"),
        (dict(size=(8, 8)), 'both sides must be'),
        (dict(mode='fast'), "mode is 'fast'"),
        (dict(clock='sun'), "clock is 'sun'"),
        (dict(rounds=1), 'rounds is 1; allowed: 2 and more'),
        (dict(batch=0), 'batch is 0'),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LatencyTable.measure(**{**dict(family='v2', size=SIZE, clock=linear), **arguments})
