"""Files in the runtimes that run them, all behind one call: arrays by name in, arrays by name out."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmplugin.deploy.predictor import openvino_core
from mmplugin.errors import UserError

Arrays = Mapping[str, np.ndarray]
KNOWN = re.compile(r'boxes|scores|labels|masks|classes|logits|stride\d+|resized|valid|original')  # names of outputs


class OnnxRuntime:
    """An ONNX file in onnxruntime, on the CPU."""

    name = 'onnxruntime'

    def __init__(self, path: str | Path, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.version = onnxruntime.__version__

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the file."""
        return dict(zip(self.outputs, self.session.run(None, dict(inputs)), strict=True))


class OpenVino:
    """An ONNX file or an IR in OpenVINO, on the CPU, in float32."""

    name = 'openvino'

    def __init__(self, path: str | Path, threads: int = 0):
        import openvino

        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32', 'NUM_STREAMS': 1}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        self.model = openvino_core().compile_model(str(path), 'CPU', settings)
        names = [output.get_names() for output in self.model.outputs]  # several of one output
        self.outputs = [next(name for name in sorted(found) if KNOWN.fullmatch(name)) for found in names]
        self.version = openvino.__version__.partition('-')[0]

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the file."""
        results = self.model(dict(inputs))
        return {name: np.array(results[i]) for i, name in enumerate(self.outputs)}


class Pt2:
    """A ``.pt2`` file in PyTorch."""

    name = 'torch'

    def __init__(self, path: str | Path, outputs: Sequence[str]):
        import torch

        from mmplugin.ops import library  # noqa: F401  the operators of the file

        self.torch, self.outputs, self.version = torch, list(outputs), torch.__version__
        self.module = torch.export.load(str(path)).module()

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the file."""
        with self.torch.no_grad():
            results = self.module(*(self.torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        return {name: value.numpy() for name, value in zip(self.outputs, results, strict=True)}


@contextmanager
def _without_messages() -> Iterator[None]:
    """Discard what a library in C++ writes to the standard error."""
    with open(os.devnull, 'wb') as null:
        saved = os.dup(2)
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class ExecuTorch:
    """A ``.pte`` file in ExecuTorch's Python runtime."""

    name = 'executorch'

    def __init__(self, path: str | Path, threads: int = 0):
        from importlib.metadata import version

        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        self.torch, self.version = torch, version('executorch')
        with _without_messages():
            if threads:
                portable_lib._unsafe_reset_threadpool(threads)  # of the process: there is no setting of a file
            self.program: Any = Runtime.get().load_program(Path(path))
            self.outputs = str(self.program.load_method('outputs').execute(())[0]).split(',')
            self.method = self.program.load_method('forward')

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the file."""
        results = self.method.execute([self.torch.from_numpy(np.ascontiguousarray(x)) for x in inputs.values()])
        return {name: value.numpy() for name, value in zip(self.outputs, results, strict=True)}


class CoreMl:
    """An ML package in CoreML, on the CPU; only on macOS."""

    name = 'coreml'

    def __init__(self, path: str | Path, threads: int = 0):
        import coremltools

        self.model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        description = self.model.get_spec().description
        self.inputs, self.outputs = ([part.name for part in parts] for parts in (description.input, description.output))
        self.version = coremltools.__version__

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run the file."""
        results = self.model.predict(dict(zip(self.inputs, inputs.values(), strict=True)))
        return {name: results[name] for name in self.outputs}


RUNTIMES: dict[str, Any] = {
    'onnxruntime': OnnxRuntime,
    'openvino': OpenVino,
    'executorch': ExecuTorch,
    'coreml': CoreMl,
}


def open_file(path: str | Path, runtime: str, threads: int = 0) -> Any:
    """Open a file in a runtime."""
    if runtime not in RUNTIMES:
        raise UserError(f"no runtime '{runtime}'; allowed: {', '.join(RUNTIMES)}")
    return RUNTIMES[runtime](path, threads)
