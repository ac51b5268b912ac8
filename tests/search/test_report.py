"""The report of a search: complete, in one file, with names of layers that do not shift."""

import argparse
import re
from html.parser import HTMLParser

from mmengine.config import Config

from mmplugin.backbones import FAMILIES
from mmplugin.search import Budget
from mmplugin.search.report import SearchReport, kept_by_layer, path_plot, prune_report, rounds_table, write_report
from mmplugin.search.result import Result
from mmplugin.search.space import sizes_of


def action(size, before, after):
    return dict(size=size, before=before, after=after, importance=0.1, gain=0.2)


START = FAMILIES['v2'].explicit('s0')
TRACE = [
    dict(number=0, arch=START, loss=1.0, measured=20.0),
    dict(
        number=1, arch=START, cost=17.0, pruned_loss=1.2, loss=1.1, measured=17.5,
        actions=[action('block.2.1', 1, 0), action('width.3', 176, 168)],
    ),
    # block 1 of stage 2 is gone: its block 1 is now what was block 2 at the start
    dict(
        number=2, arch=START, cost=15.0, pruned_loss=1.4, loss=1.2, measured=14.5,
        actions=[action('hidden.2.1', 384, 376), action('width.3', 168, 160), action('key', 32, 24)],
    ),
]  # fmt: skip


def test_what_is_kept_is_named_as_in_the_start():
    kept, before = kept_by_layer('v2', 's0', TRACE), sizes_of('v2', 's0')
    assert kept['block.2'] == (5, 6)
    assert kept['hidden.2.1'] == (0, before['hidden.2.1'])
    assert kept['hidden.2.2'] == (376, before['hidden.2.2'])
    assert (kept['width.3'], kept['key']) == ((160, 176), (24, 32))
    changed = {'block.2', 'hidden.2.1', 'hidden.2.2', 'width.3', 'key'}
    assert all(left == most for size, (left, most) in kept.items() if size not in changed)
    assert {size for size in before if not size.startswith('block')} | {f'block.{i}' for i in range(4)} == set(kept)


def test_the_table_of_rounds_starts_with_the_start():
    start, first, _ = rounds_table(TRACE).rows
    assert start == ('start', '20.0', '', '', '1.0000', '', '')
    assert first == ('1', '17.5', '17.0', '1.2000', '1.1000', '2', 'blocks, width')


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], ''

    def handle_starttag(self, tag, attrs):
        if tag not in ('meta', 'link', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(**changes):
    values = dict(
        title='mine', summary='14.5 ms of 15.0 ms & loss 1.2', headline={'ms': '14.5'}, trace=TRACE, target_ms=15.0,
        published={'v2_s0': 16.0}, kept=kept_by_layer('v2', 's0', TRACE), arch=START,
        command='mmplugin search <b> --target-latency 15ms',
        conditions={'machine': 'a machine', 'date': '2026-11-26'},
    )  # fmt: skip
    return SearchReport(**{**values, **changes})


def test_the_report_is_one_file_that_works_offline(tmp_path):
    write_report(tmp_path / 'report.html', report())
    page = (tmp_path / 'report.html').read_text()
    assert 'http' not in page
    assert len(re.findall('<img src="data:image/png;base64,', page)) == page.count('<img') == 3
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    for words in ('14.5 ms of 15.0 ms & loss 1.2', 'mmplugin search <b>', 'a machine', '"widths": [32, 48, 96, 176]'):
        assert words in elements.text


def test_networks_without_a_latency_are_not_on_the_path(monkeypatch):
    monkeypatch.setattr('mmplugin.search.report.png', lambda figure: figure)
    unmeasured = {key: value for key, value in TRACE[1].items() if key not in ('cost', 'measured')}
    predicted = {key: value for key, value in TRACE[1].items() if key != 'measured'}
    for trace, wanted in (((TRACE[0], unmeasured, TRACE[2]), [20.0, 14.5]), ((TRACE[0], predicted), [20.0, 17.0])):
        assert list(path_plot(trace, 15.0).axes[0].lines[0].get_xdata()) == wanted


def test_a_search_without_rounds_has_a_report(tmp_path):
    write_report(tmp_path / 'report.html', report(trace=TRACE[:1], target_ms=None, kept={}))
    assert (tmp_path / 'report.html').read_text().count('<img') == 1


def test_the_report_of_a_pruning_has_its_target_and_its_conditions(tmp_path):
    model = argparse.Namespace(backbone=FAMILIES['v2']('s0'))
    result = Result(Config(dict(model=dict())), model, {}, 'a summary', TRACE)
    options = argparse.Namespace(
        size=(64, 96),
        of='model',
        batch=1,
        mode='fused',
        device='cpu',
        threads=2,
        clock='wall',
        seed=3,
        command='mmplugin',
    )
    made = prune_report(result, options, Budget(shares={'latency_ms': 0.75}), {'v2_s0': {'latency_ms': 16.0}})
    assert (made.target_ms, made.headline['ms'], made.headline['loss, start']) == (15.0, '14.5', '1.000')
    assert made.conditions['latency of'] == 'the model at 64x96, batch 1, fused'
    assert (made.kept['block.2'], made.published) == ((5, 6), {'v2_s0': 16.0})
    write_report(tmp_path / 'report.html', made)
    assert 'a summary' in (tmp_path / 'report.html').read_text()
