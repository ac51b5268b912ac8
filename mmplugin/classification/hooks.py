"""What the papers' training has and mmengine does not: adaptive clipping, and an average that suits the length."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import Tensor

HORIZON = 1 / 15  # of a training: 25,000 of 375,000 iterations in the papers, by a decay of 0.99996


class WeightAverageHook(EMAHook):
    """Exponential moving average of all weights and statistics, which is evaluated and saved.

    As with mmengine's ``EMAHook``, ``state_dict`` of a checkpoint holds the average, ``ema_state_dict`` the weights
    that training continues from. In a short training the average forgets faster; at the rate of the papers it would
    consist of the initial weights.

    Args:
        momentum: Weight of the current weights in an update, at least.
        **settings: Arguments of mmengine's ``EMAHook``.
    """

    def __init__(self, momentum: float = 4e-5, **settings: Any):
        super().__init__(momentum=momentum, update_buffers=True, **settings)

    def before_run(self, runner: Runner) -> None:
        """Copy the model."""
        if runner.cfg.get('train_cfg') and runner.max_iters:
            horizon = max(2.0, HORIZON * runner.max_iters)
            self.ema_cfg['momentum'] = max(self.ema_cfg['momentum'], 1 / horizon)
        super().before_run(runner)


class AdaptiveClipHook(Hook):
    """Adaptive gradient clipping (Brock et al., 2021): a gradient is limited by the norm of its own weights.

    Args:
        factor: Largest norm of the gradient of an output unit, divided by the norm of its weights.
        eps: Least norm of weights, so that those that start at zero can grow.
    """

    def __init__(self, factor: float = 0.01, eps: float = 1e-3):
        self.factor, self.eps = factor, eps

    def before_train(self, runner: Runner) -> None:
        """Make the optimizer clip with this function, after the gradients of mixed precision were unscaled."""
        wrapper = runner.optim_wrapper
        wrapper.clip_func, wrapper.grad_name = adaptive_clip_, 'grad_norm'
        wrapper.clip_grad_kwargs = dict(factor=self.factor, eps=self.eps)


@torch.no_grad()
def adaptive_clip_(parameters: Iterable[Tensor], factor: float, eps: float = 1e-3) -> Tensor:
    """Limit the gradients, and return their norm before.

    Args:
        parameters: Parameters with gradients.
        factor: Largest norm of the gradient of an output unit, divided by the norm of its weights.
        eps: Least norm of weights.
    """
    squares = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        norms = _norm_by_unit(parameter.grad)
        limits = factor * _norm_by_unit(parameter).clamp(min=eps)
        squares.append(norms.square().sum())
        parameter.grad.mul_((limits / norms.clamp(min=1e-6)).clamp(max=1.0))
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _norm_by_unit(tensor: Tensor) -> Tensor:
    """Return the norm over all axes but the first, which counts output units; of vectors, the norm of the whole."""
    if tensor.dim() <= 1:
        return tensor.norm()
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
