"""Latency in the runtime that will run the network: ONNX Runtime or OpenVINO on this machine.

Parts cannot be timed there. The table is fitted to the times of whole networks, and what a search finds is exported and
measured next to the start.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, get_num_threads

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.measure import Settings
from mmplugin.deploy import export_backbone, open_backbone

from .conditions import Conditions
from .timing import CLOCKS
from .whole import Meter


def exported(backbone: Any, x: Tensor, runtime: str, threads: int) -> Callable[[], object]:
    """Return a call that runs a backbone in a runtime on ``x``.

    Args:
        backbone: A backbone of mmplugin; it stays as it is.
        x: One image, normalized: (1, 3, H, W).
        runtime: 'onnxruntime' or 'openvino'.
        threads: Threads of the runtime.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'backbone.onnx'
        export_backbone(backbone, path, x.shape[-2:])
        run, image = open_backbone(path, runtime, threads), x.numpy()
    return lambda: run(image)


class ExportedNetwork:
    """A backbone with random weights in a runtime, timed as a whole."""

    def __init__(self, conditions: Conditions, arch: dict[str, Any], x: Tensor):
        cls: Any = FAMILIES[conditions.family]
        self.call = exported(cls(arch, drop_path_rate=0.0), x, conditions.mode, conditions.threads)
        self.now = CLOCKS[conditions.clock]

    def times(self) -> list[float]:
        """Run once and return the milliseconds."""
        start = self.now()
        self.call()
        return [(self.now() - start) / 1e6]


class RuntimeMeter(Meter):
    """Measures exported backbones next to that of the start. Memory is that of PyTorch.

    Args:
        start: Model that the search starts from.
        segmentation: Whether the models are segmentors.
        x: One image, normalized.
        runtime: 'onnxruntime' or 'openvino'.
        settings: Rounds, clock and threads.
    """

    def __init__(self, start: Any, segmentation: bool, x: Tensor, runtime: str, settings: Settings):
        self.runtime = runtime
        super().__init__(start, 'backbone', segmentation, x, 'fused', settings)

    def _timed(self, model: Any, of: str = '') -> Callable[[], object]:
        return exported(model.backbone, self.x, self.runtime, self.settings.threads or get_num_threads())
