"""FreezeNormHook: freeze the norm layers of any part of any model."""

import logging
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmplugin.errors import UserError
from mmplugin.layers import freeze_norms, norms_of


class FreezeNormHook(Hook):
    """Keep the statistics of norm layers as loaded.

    The hook logs once what it froze. At the end of every epoch and before every validation it logs an error if
    something else changed the frozen statistics.

    Args:
        parts: Names of submodules of the model, such as ``'backbone'`` or ``'roi_head.bbox_head'``.
        affine: Freeze scale and shift, too.
    """

    priority = 'VERY_LOW'  # after every hook that might put the model into training mode

    def __init__(self, parts: Sequence[str] = ('backbone',), affine: bool = False):
        if isinstance(parts, str) or not parts:
            raise UserError(f"FreezeNormHook: parts is {parts!r}; give a list of names, such as ['backbone']")
        self.parts, self.affine = tuple(parts), affine
        self._modules: dict[str, nn.Module] = {}
        self._loaded: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Freeze the norms, and remember their statistics."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._modules = {part: self._find(model, part) for part in self.parts}
        affine = 'frozen' if self.affine else 'trainable'
        for part, module in self._modules.items():
            count = freeze_norms(module, self.affine)
            print_log(f'{count} norms of {part}: statistics frozen, scale and shift {affine}', 'current')
        if self.affine and is_model_wrapper(runner.model):
            # The wrapper waits for gradients of all parameters that were trainable when it was built: build it again.
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        self._loaded = {name: value.clone() for name, value in self._statistics()}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Freeze again after ``model.train()``, which loops call before an epoch and after a validation."""
        for module in self._modules.values():
            if any(norm.training for _, norm in norms_of(module)):
                freeze_norms(module, self.affine)

    def after_train_epoch(self, runner: Runner) -> None:
        """Check the statistics."""
        self._report_changes()

    def before_val(self, runner: Runner) -> None:
        """Check the statistics."""
        self._report_changes()

    @staticmethod
    def _find(model: nn.Module, part: str) -> nn.Module:
        try:
            return model.get_submodule(part)
        except AttributeError:
            names = ', '.join(name for name, _ in model.named_children())
            raise UserError(f'FreezeNormHook: the model has no part {part!r}; it has {names}') from None

    def _statistics(self) -> list[tuple[str, Tensor]]:
        return [
            (f'{part}.{name}.{statistic}', getattr(norm, statistic))
            for part, module in self._modules.items()
            for name, norm in norms_of(module)
            for statistic in ('running_mean', 'running_var')
            if getattr(norm, statistic) is not None
        ]

    def _report_changes(self) -> None:
        changed = [name for name, value in self._statistics() if not torch.equal(value, self._loaded[name])]
        if changed:
            print_log(
                f'FreezeNormHook: {len(changed)} frozen statistics changed, the first is {changed[0]}. Something else '
                'writes to them; look for hooks or code that call train() inside an iteration or recompute statistics.',
                'current',
                logging.ERROR,
            )
