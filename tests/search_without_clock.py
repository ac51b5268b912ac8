"""Searches of tiny configs without a clock: parts take what a function says."""

import argparse

from mmplugin.benchmark.sizes import deployed_parameters
from mmplugin.search import methods
from mmplugin.search.budget import Figures
from mmplugin.search.costs import cost
from mmplugin.search.parts import parts_of
from mmplugin.search.subnet import family_of
from mmplugin.search.whole import backbone_macs

CONFIGS = {'v2': 'retinanet_v2_s0', 'evit': 'maskrcnn_evit_m0', 'v1': 'semfpn_v1_l1'}
SIZE = (64, 96)
HEAD_MS = 1.0


def part_ms(family):
    return lambda part: 0.02 + cost(family, part, SIZE)[0] / 2e7


class Ruler:
    """Stands for ``Meter``: every part takes what ``part_ms`` says, the rest ``HEAD_MS``."""

    def __init__(self, start, *others):
        self.start = self.ms(start)

    @staticmethod
    def ms(model):
        family = family_of(model.backbone)
        return HEAD_MS + sum(map(part_ms(family), parts_of(family, model.backbone.settings)))

    def start_ms(self):
        return self.start, self.start - HEAD_MS

    def ratio(self, model):
        return self.ms(model) / self.start

    def figures(self, model, latency_ms):
        family = family_of(model.backbone)
        macs = backbone_macs(family, SIZE, model.backbone.explicit(model.backbone.settings))
        return Figures(latency_ms, deployed_parameters(model), macs, 0)


def options(**changes):
    defaults = {**methods.DEFAULTS, **dict(mini=True, recover=2, images=3, seed=0, size=SIZE, rounds=2)}
    return argparse.Namespace(**{**defaults, **changes})
