"""LabelRangeHook: check labels before they reach a loss, where a wrong one is a CUDA assert without a file name."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmplugin.errors import UserError


class LabelRangeHook(Hook):
    """Stop training at a batch with labels outside the range of the head, while the batch is still on the CPU.

    The fast data check before training opens a few masks only. This hook checks every label that is trained on.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Read the number of classes from the heads."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._pixel_limit = _count(model, 'decode_head')
        self._ignored = getattr(_first(getattr(model, 'decode_head', None)), 'ignore_index', 255)
        self._box_limit = _count(getattr(model, 'roi_head', None), 'bbox_head') or _count(model, 'bbox_head')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check the labels of a batch."""
        for sample in data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ():
            if self._pixel_limit and 'gt_sem_seg' in sample:
                labels = sample.gt_sem_seg.data
                _check(labels[labels != self._ignored], self._pixel_limit, sample.get('seg_map_path'))
            if self._box_limit and 'gt_instances' in sample and 'labels' in sample.gt_instances:
                _check(sample.gt_instances.labels, self._box_limit, sample.get('img_path'))


def _first(head: Any) -> Any:
    """Return the first head of a cascade; all of them have the same number of classes."""
    return head[0] if isinstance(head, nn.ModuleList | list | tuple) and len(head) else head


def _count(owner: Any, name: str) -> int | None:
    return getattr(_first(getattr(owner, name, None)), 'num_classes', None)


def _check(labels: Tensor, limit: int, source: str | None) -> None:
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= limit:
        raise UserError(
            f'{source or "A training sample"} has the label {low if low < 0 else high} (after reduce_zero_label); '
            f'the head allows 0 to {limit - 1}. Run `mmplugin check-data` with this config: it reads every file and '
            'names the setting to change.'
        )
