"""Cost of whole models: measured next to the start, and predicted from a table for the backbone."""

import copy
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.measure import Settings, allocated_peak, interleave
from mmplugin.benchmark.sizes import deployed_parameters, multiply_adds
from mmplugin.benchmark.subjects import apply_mode_, from_backbone, from_model

from .budget import Figures
from .costs import cost
from .parts import Part, boundaries, parts_of

Predict = Callable[[dict[str, Any]], float]  # an explicit arch to milliseconds of the backbone


class Meter:
    """Measures models of one task next to the start of the search, so that a busy machine slows both.

    Args:
        start: Model that the search starts from. A copy is kept.
        of: 'model' or 'backbone': what the latency is of.
        segmentation: Whether the models are segmentors.
        x: Images, normalized, on the device.
        mode: Mode of inference, as in the benchmark.
        settings: Rounds, clock and device.
    """

    def __init__(self, start: Any, of: str, segmentation: bool, x: Tensor, mode: str, settings: Settings):
        self.of, self.segmentation, self.x, self.mode, self.settings = of, segmentation, x, mode, settings
        self.start = self._timed(start)
        self.backbone = self._timed(start, 'backbone')

    def _timed(self, model: Any, of: str = '') -> Callable[[], object]:
        """Return what is timed."""
        return self._call(model, of)

    def _call(self, model: Any, of: str = '') -> Callable[[], object]:
        model = copy.deepcopy(model).eval()
        if (of or self.of) == 'backbone':
            subject = from_backbone(model.backbone)
        else:
            subject = from_model(model, self.segmentation, *self.x.shape[-2:])
        return partial(apply_mode_(subject, self.mode), self.x)

    @torch.inference_mode()
    def start_ms(self) -> tuple[float, float]:
        """Return the milliseconds of the start, and of its backbone alone."""
        times = interleave({'whole': self.start, 'backbone': self.backbone}, self.settings)
        return statistics.median(times['whole']), statistics.median(times['backbone'])

    @torch.inference_mode()
    def ratio(self, model: Any) -> float:
        """Return the latency of a model divided by that of the start, as the median of the ratios of all rounds."""
        times = interleave({'start': self.start, 'own': self._timed(model)}, self.settings)
        return statistics.median(own / start for own, start in zip(times['own'], times['start'], strict=True))

    def figures(self, model: Any, latency_ms: float) -> Figures:
        """Return what a model costs. MACs are those of one image."""
        subject = copy.deepcopy(model).eval()
        counted = subject.backbone if self.of == 'backbone' else subject
        call = partial(self._infer(subject), self.x[:1])
        macs = multiply_adds(counted, call)
        with torch.inference_mode():
            memory = allocated_peak(self._call(model), self.settings.device)
        return Figures(latency_ms, deployed_parameters(counted), macs, memory)

    def _infer(self, model: Any) -> Callable[[Tensor], object]:
        if self.of == 'backbone':
            return model.backbone
        return from_model(model, self.segmentation, *self.x.shape[-2:]).infer


class TableMeter(Meter):
    """Predicts instead of measuring: for a table of another device, and backbones alone.

    Args:
        predict: Milliseconds of a backbone.
        start: Model that the search starts from.
        segmentation: Whether the models are segmentors.
        x: Images, normalized.
    """

    def __init__(self, predict: Predict, start: Any, segmentation: bool, x: Tensor):
        super().__init__(start, 'backbone', segmentation, x, 'fused', Settings())
        self.predict, self.predicted = predict, predict(start.backbone.settings)

    def start_ms(self) -> tuple[float, float]:
        """Return the milliseconds of the backbone of the start, twice."""
        return self.predicted, self.predicted

    def ratio(self, model: Any) -> float:
        """Return the latency of a backbone divided by that of the start."""
        return self.predict(model.backbone.settings) / self.predicted


class WholeLatency:
    """Latency of the whole model: that of the backbone from a table, and a constant for neck and head.

    What the table gets wrong is corrected by a factor, from the last network that was measured.

    Args:
        predict: Milliseconds of a backbone.
        start: Explicit arch of the start.
        start_ms: Measured milliseconds of the start.
        backbone_ms: Measured milliseconds of its backbone.
    """

    def __init__(self, predict: Predict, start: dict[str, Any], start_ms: float, backbone_ms: float):
        self.predict = predict
        self.rest = max(0.0, start_ms - backbone_ms)
        self.factor = (start_ms - self.rest) / predict(start)

    def __call__(self, arch: dict[str, Any]) -> float:
        """Return the predicted milliseconds."""
        return self.rest + self.factor * self.predict(arch)

    def correct(self, arch: dict[str, Any], measured: float) -> None:
        """Take the factor from a measured network."""
        self.factor = max(measured - self.rest, 0.1 * measured) / self.predict(arch)

    def pass_through(self, first: tuple[dict[str, Any], float], second: tuple[dict[str, Any], float]) -> None:
        """Take the factor and the constant from two measured networks, each an arch and its milliseconds."""
        (arch, ms), (other, other_ms) = first, second
        predicted = self.predict(arch) - self.predict(other)
        if predicted > 0 and ms > other_ms:
            self.factor = (ms - other_ms) / predicted
            self.rest = ms - self.factor * self.predict(arch)


class WholeCount:
    """Parameters or multiply-adds of the whole model: those of the backbone are counted, the rest stays as it is.

    Args:
        of_backbone: Count of a backbone.
        start: Explicit arch of the start.
        whole: Count of the whole start.
    """

    def __init__(self, of_backbone: Predict, start: dict[str, Any], whole: float):
        self.of_backbone, self.rest = of_backbone, whole - of_backbone(start)

    def __call__(self, arch: dict[str, Any]) -> float:
        """Return the count."""
        return self.rest + self.of_backbone(arch)


class ParameterCounter:
    """Counts the parameters of backbones as deployed. The counts of parts are remembered, as building takes time."""

    def __init__(self, family: str):
        self.family, self.known = family, dict[Part, int]()

    def __call__(self, arch: dict[str, Any]) -> float:
        """Return the number of parameters of a backbone."""
        parts = parts_of(self.family, arch)
        if not self.known.keys() >= set(parts):
            self._learn(arch)
        return float(sum(self.known[part] for part in parts))

    def _learn(self, arch: dict[str, Any]) -> None:
        cls: Any = FAMILIES[self.family]
        with torch.device('meta'):
            backbone = cls(arch).fuse()
        starts = {id(module): i for i, (_, module) in enumerate(boundaries(backbone))}
        parts, counts, current = parts_of(self.family, arch), [0] * len(starts), 0
        for module in backbone.modules():  # in the order in which they run
            current = starts.get(id(module), current)
            counts[current] += sum(parameter.numel() for parameter in module.parameters(recurse=False))
        self.known.update(zip(parts, counts, strict=True))


def backbone_macs(family: str, size: Sequence[int], arch: dict[str, Any]) -> float:
    """Return the multiply-adds of a backbone for one image."""
    return float(sum(cost(family, part, size)[0] for part in parts_of(family, arch)))
