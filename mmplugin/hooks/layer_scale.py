"""LayerScaleHook: open the residual branches of a randomly initialized backbone."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

# With the papers' 1e-5, blocks contribute almost nothing at first, which suits hundreds of epochs but not a short
# training without pretrained weights.
FROM_SCRATCH = 0.3


def set_layer_scales_(backbone: nn.Module, value: float) -> None:
    """Set all layer scales of a backbone."""
    for name, scale in backbone.named_parameters():
        if 'layer_scale' in name:
            nn.init.constant_(scale, value)


class LayerScaleHook(Hook):
    """Set all layer scales of the backbone before the first iteration; skipped when weights were loaded.

    Args:
        value: Initial value.
    """

    priority = 'VERY_HIGH'

    def __init__(self, value: float = FROM_SCRATCH):
        self.value = value

    def before_train(self, runner: Runner) -> None:
        """Set the layer scales, unless the run is resumed or starts from a checkpoint."""
        if runner.iter == 0 and not runner._has_loaded:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            set_layer_scales_(model.backbone, self.value)
