"""AutocastOptimWrapper: mixed precision in bfloat16, also on a CPU, where mmengine's AmpOptimWrapper refuses to run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn


class AutocastOptimWrapper(OptimWrapper):
    """Run the forward pass in bfloat16. Gradients need no scaling, because bfloat16 has the range of float32."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Return the context of a training step."""
        with super().optim_context(model), torch.autocast(get_device().partition(':')[0], torch.bfloat16):
            yield
