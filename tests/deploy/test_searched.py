"""Networks that a search makes are exported as any other."""

import json

import pytest
from mmengine.config import Config
from search_without_clock import CONFIGS, SIZE, Ruler, options, part_ms
from tiny_training import tiny_config

from mmplugin.backbones import FAMILIES
from mmplugin.deploy import command
from mmplugin.search import prune_run, run
from mmplugin.search.budget import Budget
from mmplugin.search.latency import LatencyTable

pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')

pytestmark = [pytest.mark.slow, pytest.mark.no_cover]
FEW_BLOCKS = dict(
    FAMILIES['v2'].ARCHS['s0'], depths=(1, 1, 2, 2), ratios=((4,), (4,), (4, 3), (4, 3)), attention_blocks=1
)


class Clockless(prune_run.PruneRun):
    meter_class = Ruler

    def _measured_table(self, family):
        return LatencyTable.measure(family, SIZE, around=self.settings, clock=part_ms(family))


def test_a_pruned_network_is_exported_and_proven(tmp_path, tiny_sets, monkeypatch, capsys):
    monkeypatch.setattr(run, 'START_STEPS', 2)
    monkeypatch.setattr('mmplugin.search.prune.RECALIBRATION', 2)
    monkeypatch.setattr(prune_run.Settings.__init__, '__defaults__', (2, 2, 'taylor', True, 0.5))
    work = tmp_path / 'pruned'
    work.mkdir()
    cfg = Config.fromfile(tiny_config(CONFIGS['v2'], tmp_path))
    cfg.work_dir = str(work)
    cfg.model.backbone.arch = FEW_BLOCKS
    Clockless(cfg, options(), Budget.from_options(latency='85%')).run()

    out = tmp_path / 'pruned.onnx'
    arguments = ['--what', 'neck', '--size', '64x96', '--dynamic', '--out', str(out)]
    assert command.main([str(work / 'config.py'), str(work / 'whole.pth'), *arguments]) == 0
    assert 'Proven: ' in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map['mmplugin'])
    found = json.loads((work / 'arch.json').read_text())['arch']
    assert metadata['name'] == 'pruned'
    assert metadata['backbone']['arch'] == found != FEW_BLOCKS
