"""Messages of ``train`` and ``test`` for errors that the user can fix."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmplugin import stack
from mmplugin.engine import test, train
from mmplugin.engine.arguments import config_from
from mmplugin.engine.config import load_config
from mmplugin.errors import UserError

pytestmark = pytest.mark.usefixtures('tiny_sets')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['maskrcnn_v2_s2'],
            'Save the published file as checkpoints/v2_s2.safetensors, or pass its path: --weights FILE',
        ),
        (['no_model.py'], 'no_model.py has no model with a backbone'),
        (['weights.pth'], 'weights.pth is not a config that mmengine can read'),
        (['maskrcnn_v2_s2', '--cfg-options', 'custom_hooks.9.type=A'], '--cfg-options does not fit'),
        (['maskrcnn_v2_s2', '--mini', '--resume', 'gone.pth'], '--resume alone takes the last checkpoint of work_dirs'),
        (['maskrcnn_v2_s2', '--mini', '--resume'], 'no epoch_N.pth'),
        (['maskrcnn_v2_s2', '--classes', 'a,b'], '--data-root'),
        (['maskrcnn_v2_s2', '--mini', '--classes', 'a'], 'has its own classes'),
        (['maskrcnn_v2_s2', '--data-root', 'nowhere'], 'is not a folder'),
    ],
)
def test_training_refuses(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'no_model.py').write_text('number = 1')
    (tmp_path / 'weights.pth').touch()
    with pytest.raises(UserError, match=re.escape(message)):
        train.main(arguments)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['retinanet_v2_s0'], r'data/coco/annotations/instances_val2017.json does not exist: .*--data-root FOLDER'),
        (['semfpn_v2_s0'], r'data/ade/ADEChallengeData2016/images/validation does not exist: .*--data-root FOLDER'),
        (['semfpn_v2_s0', '--mini', '--fast-eval'], '--fast-eval is only for detection'),
        (['retinanet_v2_s0', '--mini', '--tta'], 'this config has no tta_model'),
        (['retinanet_v2_s0', '--mini', '--out', 'a.json'], r'must end in .pkl or .pickle'),
    ],
)
def test_testing_refuses(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'epoch_1.pth').touch()
    name, *options = arguments
    with pytest.raises(UserError, match=message):
        test.main([name, 'epoch_1.pth', *options])
    with pytest.raises(UserError, match=r'gone\.pth is not a file'):
        test.main([name, 'gone.pth'])


def test_tensorboard_is_added_to_the_visualizer(monkeypatch: pytest.MonkeyPatch):
    options = train.parse(['semfpn_v2_s0', '--tensorboard'])
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)  # not installed
    with pytest.raises(UserError, match='pip install tensorboard'):
        config_from(options)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', ModuleType('tensorboard'))
    cfg = config_from(options)
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']


def test_cfg_options_without_a_value_are_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match='2'):
        train.main(['maskrcnn_v2_s2', '--cfg-options', 'lr'], prog='mmplugin train')
    error = capsys.readouterr().err
    assert "mmplugin train: error: --cfg-options: 'lr' is not key=value" in error
    assert error.startswith('usage: mmplugin train')


@pytest.mark.skipif(stack.current() is stack.STOCK, reason='stock mmdet has no FasterCocoMetric')
def test_fast_evaluation_works_for_one_evaluator_and_for_lists():
    for evaluator in (dict(type='CocoMetric'), [dict(type='mmdet.CocoMetric'), dict(type='CocoMetric')]):
        cfg = load_config('maskrcnn_v2_s2')
        cfg.test_evaluator = evaluator
        test.use_fast_eval_(cfg)
        changed = [cfg.test_evaluator] if isinstance(evaluator, dict) else cfg.test_evaluator
        assert {metric['type'] for metric in changed} == {'FasterCocoMetric'}
