"""Files for phones: ExecuTorch's ``.pte`` and CoreML's ``.mlpackage``, both of a fixed size, both for tensors."""

import contextlib
import io
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mmplugin.deploy.metadata import KEY
from mmplugin.deploy.models import Traceable
from mmplugin.errors import UserError
from mmplugin.files import atomic_write

FORMATS = ('executorch', 'coreml')
OUTPUTS = 'outputs'  # a method of a .pte file that returns the names of the outputs
COREML_INPUT = 'normalized'  # 'tensor' is a type in CoreML's language, so coremltools replaces this name
LARGEST_BIAS = 2**21  # numbers of a bias of all pairs that may be a constant in a .pte file: 8 MB


def refuse_impossible(kind: str, dynamic: bool, image: bool, int8: bool) -> None:
    """Raise a ``UserError`` for what these formats cannot have."""
    if kind not in FORMATS:
        return
    if dynamic:
        raise UserError(f'--dynamic: files of the format {kind} have a fixed size; omit it, or use --format onnx')
    if int8:
        raise UserError(f'--int8 is for the format onnx; omit it, or omit --format {kind}')
    if image:
        raise UserError(f'--format {kind} takes normalized tensors; omit --input image, or use --format onnx')


def refuse_detector(kind: str, what: str, segmentation: bool) -> None:
    """Raise a ``UserError`` for a whole detector, whose number of boxes depends on the image."""
    if kind in FORMATS and what == 'model' and not segmentation:
        raise UserError(
            f'--format {kind}: whole detectors cannot be exported, because NMS returns as many boxes as there are. Use '
            '--what neck or --what backbone, whose maps a program of your own can read, or --format onnx'
        )


def runs_here(kind: str) -> bool:
    """Return whether this system can run a file: CoreML is a part of macOS."""
    return kind != 'coreml' or sys.platform == 'darwin'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars, deprecations, and what coremltools says about parts that exist on macOS only."""
    warned = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(warned)


def _plain(program: Any) -> Any:
    """Return a program without operators that change their input, and without ``alias``, which coremltools refuses."""
    program = program.run_decompositions({})
    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph_signature.replace_all_uses(node.name, node.args[0].name)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def write_executorch(program: Any, found: Traceable, path: Path) -> None:
    """Lower a program to XNNPACK, and write it with its metadata as the methods ``mmplugin`` and ``outputs``."""
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            lowered = to_edge_transform_and_lower(
                _folded(program),
                partitioner=[XnnpackPartitioner()],
                constant_methods={KEY: found.metadata.to_json(), OUTPUTS: ','.join(found.outputs)},
            )
            content = lowered.to_executorch().buffer
        except Exception as error:  # what a model of the user's own makes it raise
            raise UserError(f'ExecuTorch cannot lower this model ({_line(error)}); use --format onnx') from error
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def _folded(program: Any) -> Any:
    """Compute what depends on weights only: XNNPACK does not flip or index, and would do so for each image.

    A bias of all pairs stays an index into its table if it is large: as a constant, it would multiply the file.
    """
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    program, index = _plain(program), torch.ops.aten.index_select.default
    sizes = [math.prod(node.meta['val'].shape) for node in program.graph.nodes if node.target == index]
    return constant_prop_pass(program, {index} if max(sizes, default=0) > LARGEST_BIAS else set())


def write_coreml(program: Any, found: Traceable, path: Path) -> None:
    """Write a program as an ML package in float32, with its metadata as a user-defined entry."""
    with _quiet():
        import coremltools

        try:
            model = coremltools.convert(
                _plain(program),
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
        except Exception as error:  # what a model of the user's own makes it raise
            raise UserError(f'coremltools cannot convert this model ({_line(error)}); use --format onnx') from error
        spec = model.get_spec()
        inputs = [COREML_INPUT if name == 'tensor' else name for name in found.inputs]
        for features, names in ((spec.description.input, inputs), (spec.description.output, found.outputs)):
            for old, new in zip([feature.name for feature in features], names, strict=True):
                coremltools.utils.rename_feature(spec, old, new)
        spec.description.metadata.userDefined[KEY] = found.metadata.to_json()
        coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(path))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f'{lines[0]:.300}'
