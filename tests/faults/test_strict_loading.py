"""No result from the wrong weights: a checkpoint fits completely, or the message says what it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.conftest import Tiny
from mmengine.registry import MODELS

from mmplugin.engine import weights
from mmplugin.errors import UserError

CLASSES, HEAD = 'bbox_head.retina_cls.weight', 'bbox_head.retina_reg.weight'


def _saved(tiny: Tiny, path: Path, change: Callable[[dict], Any]) -> Path:
    content = tiny.content()
    change(content)
    torch.save(content, path)
    return path


def _weights(change: Callable[[dict], Any]) -> Callable[[dict], Any]:
    return lambda content: change(content['state_dict'])


def _other_backbone(state: dict) -> None:
    """As of a detector with another backbone."""
    for key in [key for key in state if key.startswith('backbone.')]:
        del state[key]
    other = MODELS.build(dict(type='EfficientFormerV2', arch='s0')).state_dict()
    state.update({f'backbone.{key}': value for key, value in other.items()})


WRONG: dict[str, tuple[Callable[[dict], Any], str]] = {
    'missing': (_weights(lambda state: state.pop(HEAD)), f'1 tensors missing in the file, such as {HEAD}'),
    'unknown': (_weights(lambda state: state.update(more=torch.zeros(1))), '1 tensors unknown to the model.*more'),
    'misshapen': (
        _weights(lambda state: state.update({CLASSES: state[CLASSES][:27]})),
        f'1 tensors of another shape, such as {CLASSES} is 27x64x3x3, the model needs 54x64x3x3.*for 3 classes',
    ),
    'whole numbers': (_weights(lambda state: state.update({HEAD: state[HEAD].long()})), 'is 36x64x3x3 of int64'),
    'complex numbers': (_weights(lambda state: state.update({HEAD: state[HEAD].cfloat()})), 'of complex64'),
    'NaN': (_weights(lambda state: state[HEAD].view(-1)[7:8].fill_(torch.nan)), '1 tensors with NaN.*retina_reg'),
    'infinity': (_weights(lambda state: state[HEAD].view(-1)[7:8].fill_(torch.inf)), '1 tensors with NaN or infinite'),
    'architecture': (
        _weights(_other_backbone),
        r'The file holds EfficientFormerV2 s0.*, with .*bbox_head.* for 6 classes',
    ),
    'empty': (lambda content: content.update(state_dict={}), 'The file holds no tensors|the file lacks state_dict'),
    'no dict': (lambda content: content.update(state_dict=[1]), 'holds a list where a dict of tensors is expected'),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_test_refuses_weights_that_do_not_fit(name: str, tiny: Tiny, tmp_path: Path):
    change, message = WRONG[name]
    path = _saved(tiny, tmp_path / 'other.pth', change)
    with pytest.raises(UserError, match=f'(?s)other.pth.*({message})'):
        tiny.test(tmp_path, path)
    with pytest.raises(UserError, match=f'(?s)other.pth.*({message})'):
        tiny.train(tmp_path, '--resume', path)


def test_a_test_loads_what_fits(tiny: Tiny, tmp_path: Path):
    tiny.test(tmp_path, tiny.checkpoint)
    assert tiny.runner.fit.complete
    saved = tiny.content()['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in tiny.runner.model.state_dict().items())


def test_counters_of_batch_norm_may_be_missing_as_in_old_files(tiny: Tiny, tmp_path: Path):
    def drop_counters(state: dict) -> None:
        for key in [key for key in state if key.endswith('num_batches_tracked')]:
            del state[key]

    tiny.test(tmp_path, _saved(tiny, tmp_path / 'old.pth', _weights(drop_counters)))
    saved = tiny.content()['state_dict']
    loaded = tiny.runner.model.state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved if not key.endswith('num_batches_tracked'))


def test_partial_loading_prints_what_was_not_loaded(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = _saved(tiny, tmp_path / 'other.pth', WRONG['misshapen'][0])
    tiny.test(tmp_path, path, '--allow-partial')
    said = capsys.readouterr().out
    assert f'Not loaded: 1 tensors of another shape, such as {CLASSES} is 27x64x3x3' in said
    for name in ('NaN', 'empty'):
        with pytest.raises(UserError, match='does not fit this model'):
            tiny.test(tmp_path, _saved(tiny, path, WRONG[name][0]), '--allow-partial')


def test_fine_tuning_needs_the_whole_backbone_but_not_the_heads(tiny: Tiny, tmp_path: Path):
    path = tmp_path / 'other.pth'
    _saved(tiny, path, WRONG['misshapen'][0])
    tiny.train(tmp_path, '--cfg-options', f'load_from={path}')
    assert [name.split(' ')[0] for name in tiny.runner.fit.misshapen] == [CLASSES]
    one = next(key for key in tiny.content()['state_dict'] if key.startswith('backbone.') and key.endswith('weight'))
    for change in (lambda state: state.pop(one), _other_backbone, lambda state: state[one].fill_(torch.nan)):
        _saved(tiny, path, _weights(change))
        with pytest.raises(UserError, match=r'does not fit this model'):
            tiny.train(tmp_path, '--cfg-options', f'load_from={path}')


def _optimizer(change: Callable[[dict], Any]) -> Callable[[dict], Any]:
    return lambda content: change(content['optimizer'])


def _moments(value: torch.Tensor | None, scale: float = 1.0) -> Callable[[dict], Any]:
    def change(content: dict) -> None:
        for state in content['optimizer']['state'].values():
            state['exp_avg'] = state['exp_avg'] * scale if value is None else value

    return change


NOT_RESUMABLE: dict[str, tuple[Callable[[dict], Any], str]] = {
    'no optimizer': (lambda content: content.pop('optimizer'), 'the file lacks optimizer, so.*load_from='),
    'empty optimizer': (lambda content: content.update(optimizer={}), 'the file lacks optimizer'),
    'tensor as optimizer': (lambda content: content.update(optimizer=torch.zeros(3)), 'the file lacks optimizer'),
    'optimizer of another model': (_optimizer(lambda state: state['param_groups'].pop()), 'does not fit this config'),
    'strange optimizer': (_optimizer(lambda state: state.update(param_groups='abc')), 'does not fit this config'),
    'moments of another shape': (_moments(torch.zeros(1)), 'tensors of the optimizer have another shape'),
    'moments with NaN': (_moments(None, torch.nan), 'tensors of the optimizer have another shape.*or NaN'),
    'no meta': (lambda content: content.pop('meta'), 'the file lacks meta'),
    'no hub': (lambda content: content.pop('message_hub'), 'the file lacks message_hub'),
    'strange hub': (lambda content: content.update(message_hub={'a': 1}), 'does not fit this config|resume'),
    'no schedule': (lambda content: content.pop('param_schedulers'), 'learning rate schedules'),
    'other schedule': (lambda content: content['param_schedulers'].pop(), 'learning rate schedules'),
    'strange schedule': (lambda content: content.update(param_schedulers=[1, 2]), 'does not fit this config'),
    'negative iteration': (lambda content: content['meta'].update(iter=-5), 'iteration -5; expected two whole numbers'),
    'text as iteration': (lambda content: content['meta'].update(iter='many'), "iteration 'many'; expected"),
    'absurd iteration': (lambda content: content['meta'].update(iter=10**9), 'iteration 1000000000, but this run ends'),
    'boolean epoch': (lambda content: content['meta'].update(epoch=True), 'epoch True'),
    'other epochs': (lambda content: content['meta'].update(epoch=3, iter=2), 'an epoch of this run has 2 iterations'),
    'strange seed': (lambda content: content['meta'].update(seed='abc'), 'does not fit this config'),
}


@pytest.mark.parametrize('name', NOT_RESUMABLE)
def test_resuming_is_exact_or_refused(name: str, tiny: Tiny, tmp_path: Path):
    change, message = NOT_RESUMABLE[name]
    path = _saved(tiny, tmp_path / 'epoch_9.pth', change)
    with pytest.raises(UserError, match=f'(?s)epoch_9.pth.*({message})'):
        tiny.train(tmp_path, '--resume', path)


def test_resuming_restores_optimizer_schedule_and_position(tiny: Tiny, tmp_path: Path):
    tiny.train(tmp_path, '--resume', tiny.checkpoint)
    runner, content = tiny.runner, tiny.content()
    assert (runner.epoch, runner.iter) == (1, 2)
    states = runner.optim_wrapper.state_dict()['state']
    for number, state in content['optimizer']['state'].items():
        assert all(torch.equal(states[number][name], value) for name, value in state.items())
    assert [scheduler.state_dict() for scheduler in runner.param_schedulers] == content['param_schedulers']


@pytest.mark.parametrize('name', ['strict', 'partial', 'finetuning'])
def test_weights_of_distributed_training_load(name: str):
    """Their names start with ``module.``."""
    model = torch.nn.Linear(2, 2)
    saved = {f'module.{key}': torch.ones_like(value) for key, value in model.state_dict().items()}
    load = {
        'strict': weights.load_exactly,
        'partial': weights.load_partially,
        'finetuning': weights.load_for_finetuning,
    }[name]
    fit = load(model, weights.state_dict_of({'state_dict': saved}, 'a.pth'), 'a.pth')
    assert fit.complete
    assert bool((model.weight == 1).all())
