"""Ranking: other networks in the user's model, and the answer. No test depends on a clock."""

import json

import pytest
import torch

from mmplugin.benchmark.measure import Settings
from mmplugin.benchmark.published import PUBLISHED
from mmplugin.benchmark.sizes import ARCHS
from mmplugin.engine.config import load_config
from mmplugin.search import Budget, Figures, rank, rank_output
from mmplugin.search.other_archs import DoesNotFit, published_name, with_arch
from mmplugin.search.rank import Row


def row(name, ms, params=10e6):
    published = dict(PUBLISHED[name].accuracy) if name in PUBLISHED else {}
    return Row(name, Figures(ms, params, 1e9, 2**20), ms - 1, ms + 1, published=published)


def ranked(budget, *rows, start='v2_s0'):
    return rank.judge(list(rows), budget, start, [])


def test_the_most_accurate_network_that_fits_is_the_answer():
    ranking = ranked(
        Budget(latency_ms=30),
        row('evit_m0', 5),
        row('v2_s0', 10),
        row('evit_m4', 12),
        row('v2_s1', 20),
        row('v2_l', 40),
    )
    assert [r.name for r in ranking.rows if r.on_frontier] == ['evit_m0', 'v2_s0', 'v2_s1', 'v2_l']
    assert rank_output.sentence(ranking) == (
        'v2_s1 is the best published network that fits: latency 20 ms of 30 ms, top-1 79.0.'
    )
    assert ranking.rows[1].mes == pytest.approx(100)
    assert ranking.rows[3].mes == pytest.approx(50)  # as many parameters, half as fast


def test_a_limit_within_the_noise_is_said():
    text = rank_output.sentence(ranked(Budget(latency_ms=20.5), row('v2_s0', 10), row('v2_s1', 20)))
    assert text.endswith('The upper quartile of its latency is 21.0 ms: the limit is within the noise.')


def test_that_no_network_fits_is_an_answer():
    budget = Budget(latency_ms=4, params=5e6)
    assert rank_output.sentence(ranked(budget, row('evit_m0', 5, 2e6), row('v2_s0', 10))) == (
        'None of the 2 networks fits. The fastest is evit_m0: latency 5 ms of 4 ms.'
    )
    slow = row('v2_s0', 10)
    slow.parts = dict(backbone=2, neck=1, head=7)
    assert rank_output.sentence(ranked(budget, slow)).endswith('parameters 10 M of 5 M. Neck and head take 8 ms of it.')


def test_an_own_architecture_is_the_start_but_no_published_network():
    ranking = ranked(Budget(shares={'latency_ms': 0.6}), row('v2_s0', 10), row('start', 20), start='start')
    assert ranking.budget.limits() == {'latency_ms': 12}
    assert 'v2_s0 is the best published network' in rank_output.sentence(ranking)
    text = rank_output.sentence(ranked(Budget(latency_ms=30), row('start', 20), start='start'))
    assert text == 'No published network was measured. The start fits: latency 20 ms of 30 ms.'


def test_the_files_have_what_was_measured(tmp_path):
    ranking = ranked(Budget(latency_ms=30), row('v2_s0', 10), row('v2_l', 40))
    meta = dict(size=[64, 64], batch=1, mode='fused', machine='a machine', date='2026-11-26')
    rank_output.write_json(ranking, meta, tmp_path / 'rank.json')
    content = json.loads((tmp_path / 'rank.json').read_text())
    assert [(net['name'], net['figures']['latency_ms']) for net in content['networks']] == [('v2_s0', 10), ('v2_l', 40)]
    assert (content['limits'], content['networks'][1]['unmet']) == ({'latency_ms': 30}, ['latency_ms'])
    rank_output.write_picture(ranking, meta, tmp_path / 'rank.png')
    assert (tmp_path / 'rank.png').read_bytes().startswith(b'\x89PNG')
    costs, comparison = rank_output.tables(ranking, ('top-1',), '')
    assert costs.rows[0] == ('v2_s0 (start)', '10.0', '10.00', '1', '1')
    assert comparison.rows[1] == ('v2_l', '40.0', '25', '83.3', 'yes', 'no: latency')


@pytest.mark.parametrize('config', ['semfpn_v2_s0', 'retinanet_evit_m0', 'maskrcnn_v1_l1', 'retinanet_v2_s0'])
def test_each_published_network_in_each_model_gives_the_same_pyramid(config):
    from mmplugin.engine.runner import build_model

    cfg, shapes = load_config(config), {}
    own = published_name(cfg.model.backbone)
    for name in (own, 'v1_l1', 'v2_s0', 'evit_m0'):
        adapted = cfg if name == own else with_arch(cfg, name)
        adapted.model.backbone.init_cfg = None
        assert published_name(adapted.model.backbone) == name
        with torch.device('meta'):
            model = build_model(adapted)
        shapes[name] = [tuple(y.shape) for y in model.extract_feat(torch.empty(1, 3, 128, 192, device='meta'))]
    assert len(set(map(str, shapes.values()))) == 1


def test_a_published_network_is_recognized_by_its_sizes():
    cfg = load_config('semfpn_v2_s0')
    arch = ARCHS['v2_s0'][0].explicit('s0')
    cfg.model.backbone.arch = arch
    assert published_name(cfg.model.backbone) == 'v2_s0'
    cfg.model.backbone.arch = dict(arch, widths=(32, 48, 96, 184))
    assert published_name(cfg.model.backbone) == 'start'


def test_with_another_neck_only_the_config_itself_is_ranked():
    cfg = load_config('semfpn_v2_s0')
    cfg.model.neck.type = 'PAFPN'
    with pytest.raises(DoesNotFit, match=r'the neck of this config is PAFPN.*--of backbone'):
        with_arch(cfg, 'v2_s1')
    assert list(rank.configs(cfg, 'model')[0]) == ['v2_s0']
    sources, start, _ = rank.configs(cfg, 'backbone')
    assert (set(sources), start) == (set(ARCHS), 'v2_s0')


def test_parts_add_up_to_the_whole(monkeypatch):
    now = iter(range(10**6))  # each look at the clock takes a second
    monkeypatch.setattr(rank, 'clock', lambda settings: now.__next__)
    monkeypatch.setattr('mmplugin.benchmark.measure.clock', lambda settings: now.__next__)
    cfg = load_config('semfpn_v2_s0')
    sources = {'v2_s0': cfg, 'evit_m0': with_arch(cfg, 'evit_m0')}
    rows = rank.measure(Settings(rounds=1), sources, (64, 64), 'fused', show_progress=False)
    for measured in rows:
        assert measured.parts == {'backbone': 1e3, 'neck': 1e3, 'head': 3e3}
        assert measured.figures.latency_ms == 5e3
        assert measured.figures.macs > 1e6
        assert measured.figures.memory > 1e4


def test_a_process_that_is_killed_ends_in_one_message(monkeypatch, tmp_path):
    from concurrent.futures.process import BrokenProcessPool

    from mmplugin import cli

    def killed(*args):
        raise BrokenProcessPool

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank, 'in_new_process', killed)
    assert cli.main(['search', 'semfpn_v2_s0', '--rank-only', '--target-latency', '20ms']) == 2
