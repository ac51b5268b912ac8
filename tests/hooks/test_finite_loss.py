"""FiniteLossHook: a training stops at the first loss that is not finite, and saves no weights that are not."""

from types import SimpleNamespace

import pytest
import torch

from mmplugin.errors import UserError
from mmplugin.hooks import finite_loss
from mmplugin.hooks.finite_loss import FiniteLossHook

RUNNER = SimpleNamespace(iter=4, work_dir='runs/a')


def _batch(*paths: str) -> dict:
    return {'inputs': [], 'data_samples': [SimpleNamespace(img_path=path) for path in paths]}


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_a_loss_on_the_cpu_stops_at_once_and_names_the_images(value: float):
    hook = FiniteLossHook()
    hook.after_train_iter(RUNNER, 4, _batch('a.jpg', 'b.jpg'), {'loss': torch.tensor(1.0)})
    outputs = {'loss': torch.tensor(2.0), 'loss_bbox': torch.tensor([1.0, value])}
    with pytest.raises(UserError, match=r'at iteration 5; its batch: c\.jpg, d\.jpg\. Training stopped.*runs/a.*lr='):
        hook.after_train_iter(RUNNER, 4, _batch('c.jpg', 'd.jpg'), outputs)


def _deferred(hook: FiniteLossHook, bad: int, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Train as on a GPU, where the losses are read every ``interval`` iterations."""
    monkeypatch.setattr(finite_loss, '_takes_time', lambda value: True)
    for i in range(last):
        loss = torch.tensor(torch.nan if i == bad else 1.0)
        hook.after_train_iter(SimpleNamespace(iter=i, work_dir='a'), i, _batch(f'{i}.jpg'), {'loss': loss})


@pytest.mark.parametrize('bad', [0, 9, 10, 13])
def test_a_loss_on_a_gpu_stops_within_ten_iterations(bad: int, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=rf'at iteration {bad + 1}; its batch: {bad}\.jpg\.'):
        _deferred(FiniteLossHook(), bad, monkeypatch, last=bad + 10)


def test_losses_that_were_not_read_yet_are_read_before_a_save(monkeypatch: pytest.MonkeyPatch):
    for event in ('after_train_epoch', 'before_save_checkpoint'):
        hook = FiniteLossHook()
        _deferred(hook, 1, monkeypatch, last=3)
        with pytest.raises(UserError, match='at iteration 2'):
            getattr(hook, event)(RUNNER, *([{'state_dict': {}}] if event.startswith('before') else []))


def test_weights_that_are_not_finite_are_not_saved():
    state = {'a': torch.zeros(2), 'count': torch.tensor(3), 'b': torch.tensor([1.0, torch.inf])}
    with pytest.raises(UserError, match=r'1 weights are NaN or infinite after iteration 5 \(b\)\. Nothing was saved'):
        FiniteLossHook().before_save_checkpoint(RUNNER, {'state_dict': state})
    state['b'] = torch.zeros(2)
    FiniteLossHook().before_save_checkpoint(RUNNER, {'state_dict': state})


def test_unusual_outputs_and_batches_do_not_matter():
    hook = FiniteLossHook()
    hook.after_train_iter(RUNNER, 0, None, None)
    hook.after_train_iter(RUNNER, 0, [1, 2], {'loss': torch.tensor(1.0), 'acc': 0.5})
    with pytest.raises(UserError, match='its batch: unknown'):
        hook.after_train_iter(RUNNER, 0, [1, 2], {'loss': torch.tensor(torch.nan)})
