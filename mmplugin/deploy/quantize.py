"""An ONNX file whose convolutions and matrix products compute in 8 bits, calibrated on images, and what that costs."""

import contextlib
import copy
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mmengine.config import Config

from mmplugin.deploy.check import Proof, alternate, headlines
from mmplugin.deploy.export import require_standard, save_onnx
from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.samples import Data, Score, as_data_sample, file_inputs

IMAGES = 32  # of calibration
OPERATORS = ['Conv', 'MatMul', 'Gemm']  # all others stay in float32


def calibration_data(cfg: Config) -> Data:
    """Return training images, as the test pipeline prepares them."""
    cfg = copy.deepcopy(cfg)
    train, test = (_innermost(cfg[f'{name}_dataloader'].dataset) for name in ('train', 'test'))
    for name in ('data_root', 'ann_file', 'data_prefix'):
        if name in train:
            test[name] = train[name]
    return Data(cfg, IMAGES)


def _innermost(dataset: Any) -> Any:
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def write_int8(
    source: str | Path, inputs: Iterable[dict[str, np.ndarray]], metadata: Metadata, path: str | Path
) -> None:
    """Write an ONNX file in 8 bits.

    Args:
        source: The file in float32.
        inputs: What the file is run with to find the ranges of activations.
        metadata: The metadata of ``source``.
        path: The file to write.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    logger = logging.getLogger()
    level = logger.level
    with TemporaryDirectory() as folder, contextlib.ExitStack() as after:
        after.callback(logger.setLevel, level)
        logger.setLevel(logging.ERROR)  # it advises to preprocess the file, which changes nothing here
        draft = Path(folder, 'int8.onnx')
        quantization.quantize_static(
            str(source),
            str(draft),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        model = onnx.load(str(draft))
    require_standard(model)
    save_onnx(model, replace(metadata, int8=True), path)


def prove_int8(run: Any, float_run: Any, proof: Proof, data: Data, metadata: Metadata, max_drop: float) -> Proof:
    """Measure what 8 bits cost and save.

    Args:
        run: The file in 8 bits in a runtime.
        float_run: The file in float32.
        proof: The result of the file in float32.
        data: Test images.
        metadata: The metadata of the file.
        max_drop: Largest loss of AP, or of mIoU / 100.

    Returns:
        Metrics and times, those of float32 first.
    """
    score = Score(data)
    for sample in data.samples():
        score.add(as_data_sample(run(file_inputs(sample, metadata)), sample, metadata))
    inputs = file_inputs(next(data.samples(1)), metadata)
    result = Proof(proof.runtime, before=proof.after, after=score.values(), images=score.count)
    result.milliseconds = alternate(lambda: float_run(inputs), lambda: run(inputs))
    result.problems = large_losses(result, max_drop)
    return result


def large_losses(result: Proof, max_drop: float) -> list[str]:
    """Return which of AP and mIoU fall by more than ``max_drop``, in words."""
    found = []
    for name, text, before, after in headlines(result):
        drop = (before - after) / (100 if '%' in text else 1)
        if text in ('box AP', 'mask AP', 'mIoU %') and not drop <= max_drop:
            found.append(f'{text} falls from {before:.4f} to {after:.4f} ({name}), --max-drop is {max_drop:g}')
    return found
