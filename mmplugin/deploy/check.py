"""The proof of an exported file: its answers beside those of PyTorch, on images of the config's data."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.models import Traceable, other_sizes
from mmplugin.deploy.samples import Data, Reference, Sample, Score, as_data_sample, file_inputs
from mmplugin.engine.result_tables import HEADLINES
from mmplugin.layers import ceil_div

BOX_TOLERANCE = 0.05  # pixels of the original image
SCORE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 5e-5  # of the largest value of a map
METRIC_TOLERANCE = {'AP': 0.0005, '%': 0.05}  # of AP, of percentages
RESIZES_TOLERANCE = {'AP': 0.005, '%': 0.5}  # where the file resizes images, and OpenCV for PyTorch
NOISE = 1e-6  # relative change of the input whose effect a file may have, too
TRIES = 8  # changes of an image that are tried if its answers differ: equal scores may come in many orders
COMPARED = 8  # images, see `prove`
ROUNDS = 5  # of timing


@dataclass
class Comparison:
    """How two lists of answers differ.

    Args:
        errors: Largest difference by output: boxes in pixels, scores, masks and features as they are.
        lost: Objects or pixels of the first list that are not in the second one.
        total: Objects or pixels of the first list.
    """

    errors: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    total: int = 0

    def note(self, name: str, error: float) -> None:
        """Keep the largest difference."""
        self.errors[name] = max(self.errors.get(name, 0.0), float(error))

    def add(self, other: 'Comparison') -> None:
        """Add the comparison of another image."""
        self.lost, self.total = self.lost + other.lost, self.total + other.total
        for name, error in other.errors.items():
            self.note(name, error)


@dataclass
class Proof:
    """The result of a check.

    Args:
        runtime: Name and version of the runtime.
        file: The file beside PyTorch.
        noise: PyTorch beside itself, after changes of the input and of scores by ``NOISE``.
        before: Metrics of PyTorch; empty if there is no data.
        after: Metrics of the file.
        images: Images of the metrics.
        milliseconds: Median time of one image, in PyTorch and in the runtime.
        problems: What is wrong; a file without problems is proven.
    """

    runtime: str
    file: Comparison = field(default_factory=Comparison)
    noise: Comparison = field(default_factory=Comparison)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    images: int = 0
    milliseconds: tuple[float, float] = (float('nan'), float('nan'))
    problems: list[str] = field(default_factory=list)


def compare_objects(expected: Any, found: Any, result: Comparison) -> None:
    """Match the objects of two data samples: each to the nearest one of the same class that is left."""
    one, other = expected.pred_instances.numpy(), found.pred_instances.numpy()
    free = np.ones(len(other.scores), bool)
    result.total += len(one.scores)
    for i, (box, score, label) in enumerate(zip(one.bboxes, one.scores, one.labels, strict=True)):
        distance = np.abs(other.bboxes - box).max(1, initial=0.0) + np.abs(other.scores - score)
        distance[~free | (other.labels != label)] = np.inf
        j = int(distance.argmin()) if len(distance) else -1
        if j < 0 or not np.isfinite(distance[j]):
            result.lost += 1
            continue
        errors = np.abs(other.bboxes[j] - box).max(), abs(float(other.scores[j] - score))
        if errors[0] > BOX_TOLERANCE or errors[1] > SCORE_TOLERANCE:
            result.lost += 1
            continue
        free[j] = False
        result.note('boxes', errors[0])
        result.note('scores', errors[1])
        if 'masks' in one:
            result.note('mask pixels', int((np.asarray(one.masks[i]) != np.asarray(other.masks[j])).sum()))
    result.lost += int(free.sum())  # objects that only the file has


def compare_maps(expected: Any, found: Any, result: Comparison) -> None:
    """Count the pixels whose classes differ."""
    one, other = (np.asarray(sample.pred_sem_seg.data.cpu()).squeeze() for sample in (expected, found))
    result.lost += int((one != other).sum()) if one.shape == other.shape else one.size
    result.total += one.size


def prove(
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    runtime: str,
    reference: Reference,
    data: Data,
    metadata: Metadata,
    with_metrics: bool = True,
    resize: Callable[[Sample], Sample] | None = None,
    compared: int = COMPARED,
) -> Proof:
    """Compare a file with PyTorch.

    Args:
        run: The file in a runtime.
        runtime: Name and version of the runtime.
        reference: The model in PyTorch.
        data: Images.
        metadata: The metadata of the file.
        with_metrics: Whether to compute AP or mIoU; if not, the file is compared image by image only.
        resize: How a file that resizes images does it. Image by image, PyTorch gets what the file computes from; for AP
            and mIoU it gets what OpenCV resized.
        compared: Images whose answers are compared one by one, half of them at other sizes.
    """
    proof = Proof(runtime)
    compare = compare_maps if metadata.kind == 'classes' else compare_objects

    def answer(sample: Sample) -> Any:
        return as_data_sample(run(file_inputs(sample, metadata)), sample, metadata)

    others = other_sizes(metadata.size, metadata.min_size, metadata.dynamic)
    firsts = list(data.samples(compared // 2))
    resized = Sample.resized if resize is None else Sample.with_source
    for i, sample in enumerate([*firsts, *(resized(sample, *others[i % 3]) for i, sample in enumerate(firsts))]):
        if resize is not None:
            sample = resize(sample)
        expected = reference(sample)
        file, noise = Comparison(), Comparison()
        compare(expected, answer(sample), file)
        for seed in range(1 if metadata.kind == 'classes' else TRIES):
            changed = Comparison()
            compare(expected, reference(sample, NOISE, seed), changed)
            noise = max(noise, changed, key=lambda one: one.lost) if seed else changed
            if noise.lost >= file.lost:
                break
        proof.file.add(file)
        proof.noise.add(noise)
        if i == 0:
            traced = sample if metadata.dynamic or metadata.resizes else sample.resized(*metadata.size)
            proof.milliseconds = alternate(partial(reference, traced), partial(run, file_inputs(traced, metadata)))
    if with_metrics:
        before, after = Score(data), Score(data)
        for sample in data.samples():
            before.add(reference(sample))
            after.add(answer(sample))
        proof.before, proof.after, proof.images = before.values(), after.values(), before.count
    judge_(proof, metadata)
    return proof


def alternate(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Return the median milliseconds of two calls that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (one, other):
        call()
    for _ in range(ROUNDS):
        for call, found in zip((one, other), times, strict=True):
            start = time.perf_counter()
            call()
            found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def judge_(proof: Proof, metadata: Metadata) -> None:
    """Add what is wrong to the problems of a proof."""
    file, unit = proof.file, 'pixels' if metadata.kind == 'classes' else 'objects'
    # Two answers that are almost equal may change places: at most as often as after a change of the input by rounding,
    # with one in 200 objects, or in 100,000 pixels, for chance.
    allowed = proof.noise.lost + file.total // (100_000 if metadata.kind == 'classes' else 200)
    if file.lost > allowed:
        proof.problems.append(
            f'{file.lost} of {file.total} {unit} differ (PyTorch after a change of its input by {NOISE:g}: '
            f'{proof.noise.lost})'
        )
    if not file.total:
        proof.problems.append('PyTorch finds no object in the images, so nothing could be compared; train longer')
    if (pixels := file.errors.get('mask pixels', 0)) > max(4, 2 * proof.noise.errors.get('mask pixels', 0)):
        proof.problems.append(f'{pixels:.0f} pixels of a mask differ')
    tolerance = RESIZES_TOLERANCE if metadata.resizes else METRIC_TOLERANCE
    for name, text, before, after in headlines(proof):
        if not abs(before - after) <= tolerance['%' if '%' in text else 'AP']:
            proof.problems.append(f'{text} is {after:.4f} instead of {before:.4f} ({name})')


def headlines(proof: Proof) -> list[tuple[str, str, float, float]]:
    """Return the name, the text and both values of each metric that a report shows."""
    found = []
    for name, before in proof.before.items():
        text = HEADLINES.get(name.rpartition('/')[2])
        if text:
            found.append((name, text, float(before), float(proof.after.get(name, float('nan')))))
    return found


def compare_features(expected: Sequence[Any], found: dict[str, np.ndarray], result: Comparison) -> None:
    """Note the largest difference of each map, relative to its largest value."""
    for (name, value), reference in zip(found.items(), expected, strict=True):
        one = reference.numpy()
        scale = max(1.0, float(np.abs(one).max()))
        error = float(np.abs(one - value).max()) / scale if one.shape == value.shape else float('inf')
        result.note(name, error)
        result.total += 1
        result.lost += not error <= FEATURE_TOLERANCE


def prove_numbers(run: Any, runtime: str, found: Traceable, images: Sequence[torch.Tensor] | None = None) -> Proof:
    """Compare a file with its module in PyTorch, number by number, on random inputs.

    Args:
        run: The file in a runtime.
        runtime: Name and version of the runtime.
        found: The module.
        images: Normalized images of the traced size, in place of random inputs.
    """
    proof = Proof(runtime)
    sizes = [found.metadata.size]
    if found.metadata.dynamic:
        sizes += other_sizes(found.metadata.size, found.metadata.min_size, True)
    if found.metadata.kind != 'features':
        sizes = [(ceil_div(height, 32) * 32, ceil_div(width, 32) * 32) for height, width in sizes]
    torch.manual_seed(0)
    given = [found.random_inputs(*size) for size in reversed(sizes)] if images is None else [[x] for x in images]
    for inputs in given:
        arrays = {name: value.numpy() for name, value in zip(found.inputs, inputs, strict=True)}
        with torch.no_grad():
            compare_features(found.module(*inputs), run(arrays), proof.file)
    with torch.no_grad():
        proof.milliseconds = alternate(lambda: found.module(*inputs), lambda: run(arrays))
    if proof.file.lost:
        proof.problems.append(f'{proof.file.lost} of {proof.file.total} results differ by more than rounding')
    return proof
