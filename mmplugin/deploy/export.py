"""From a module to a program of torch.export, and from there to files: ONNX, OpenVINO's IR, pt2."""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmplugin.deploy import mobile
from mmplugin.deploy.metadata import KEY, Metadata
from mmplugin.deploy.models import Traceable
from mmplugin.deploy.predictor import CHECKSUMS, NO_CHECKSUM, checksum, openvino_core
from mmplugin.errors import UserError
from mmplugin.files import atomic_write
from mmplugin.text import some

OPSET = 20
LARGEST = 8192  # side of an image that a dynamic file takes
LARGE = (512, 544)  # four cells of stride 128, and two windows of EfficientViT's stride 64
# A condition that a size, or what is computed from it, equals a number; and one of a dimension that has no symbol.
PINNED = re.compile(r'== *(\d+) *$|^ *(\d+) *==')
CONSTANT = re.compile(r'[^=]*size\(\)\[[01]\] *== *\d+ *')
# The packages of a format, and the extra that installs them.
PACKAGES = {
    'onnx': (('onnx', 'onnxscript', 'onnxruntime'), 'export'),
    'openvino': (('onnx', 'onnxscript', 'openvino'), 'openvino'),
    'pt2': ((), 'export'),
    'executorch': (('executorch',), 'executorch'),
    'coreml': (('coremltools',), 'coreml'),
}


def require_packages(kind: str) -> None:
    """Raise a ``UserError`` that names the packages of a format that are not installed."""
    import importlib.util

    packages, extra = PACKAGES[kind]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'the format {kind} needs packages that are not installed ({", ".join(missing)}): '
            f'`pip install "mmplugin[{extra}]"`'
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about torchvision, about itself, and about copies of constants."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def program_of(found: Traceable) -> Any:
    """Return the program of a model.

    Raises:
        UserError: The model cannot be traced, or is right for one size only, although the file is for all sizes.
    """
    size, least, dynamic = found.metadata.size, found.metadata.min_size, found.metadata.dynamic
    # A side of one cell in the coarsest map would be taken for a constant, so a dynamic file is traced at a large size.
    traced = [max(side, large) for side, large in zip(size, LARGE, strict=True)] if dynamic else size
    try:
        program = trace(found.module, found.random_inputs(*traced), found.sides if dynamic else {}, least[0])
    except Exception as error:  # a tracer raises whatever a model of the user's own makes it raise
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'torch.export cannot trace this model ({problem:.300}). Try --what backbone or --what neck'
            + (', or omit --dynamic' if dynamic else '')
        ) from error
    if dynamic:
        require_any_size(program)
    return program


def trace(module: nn.Module, inputs: Sequence[Tensor], sides: dict[int, tuple[int, int]], least: int) -> Any:
    """Return the program of a module.

    Args:
        module: In inference mode.
        inputs: Tensors to trace with.
        sides: By the number of an input, its dimensions that are symbolic; empty for a fixed size.
        least: Least length of a symbolic side.
    """
    side = torch.export.Dim.DYNAMIC(min=least, max=LARGEST)
    shapes = tuple(dict.fromkeys(sides.get(i, ()), side) for i in range(len(inputs)))
    with torch.no_grad(), _quiet():
        # strict mode would trace Python itself, in minutes, and stop at other places
        return torch.export.export(module, tuple(inputs), dynamic_shapes=shapes if sides else None, strict=False)


def require_any_size(program: Any) -> None:
    """Raise a ``UserError`` if a program with symbolic sizes is right for one size only.

    Where a model turns a size into a number, torch.export notes that the graph holds for this number, and its own
    program checks it. ONNX files do not: they would run, and be wrong, at other sizes. Conditions that relate sizes to
    each other concern the layout of memory, which other runtimes choose themselves. The attribute is private; without
    it, the comparison of results at other sizes remains.
    """
    guards = [str(guard) for guard in getattr(program, '_guards_code', None) or []]
    # Batch and channels are numbers; so are 0 and 1, which every size is compared with.
    pinned = [guard for guard in guards if (found := PINNED.search(guard)) and int(found[1] or found[2]) > 1]
    if pinned := [guard for guard in pinned if not CONSTANT.fullmatch(guard)]:
        raise UserError(
            f'this model is right for the traced image size only, because it needs {some(pinned)}. Export a fixed '
            'size: omit --dynamic'
        )


def write(program: Any, found: Traceable, kind: str, path: str | Path) -> None:
    """Write a program in one of the formats ``PACKAGES``."""
    path = Path(path)
    if kind == 'pt2':
        write_pt2(program, found.metadata, path)
        return
    if kind in mobile.FORMATS:
        (mobile.write_executorch if kind == 'executorch' else mobile.write_coreml)(program, found, path)
        return
    target = path if kind == 'onnx' else path.with_suffix('.part.onnx')
    write_onnx(program, found.inputs, found.outputs, found.metadata, target)
    if kind == 'openvino':
        try:
            write_openvino(target, found.metadata, path)
        finally:
            target.unlink(missing_ok=True)


def write_onnx(
    program: Any, inputs: Sequence[str], outputs: Sequence[str], metadata: Metadata, path: str | Path
) -> None:
    """Write one ONNX file with standard operators, and check it."""
    import onnx

    from mmplugin.ops.onnx import translations

    with torch.no_grad(), _quiet():
        written = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=False,
            custom_translation_table=translations(),
            optimize=True,
            verbose=False,
        )
    assert written is not None
    model = written.model_proto
    _name(model, inputs, outputs)
    if metadata.resizes:
        from mmplugin.deploy.resizing import add_resizing_

        add_resizing_(model, metadata)
    model.producer_name, model.producer_version = KEY, metadata.versions.get('mmplugin', '')
    require_standard(model)
    onnx.checker.check_model(model, full_check=True)
    save_onnx(model, metadata, path)


def save_onnx(model: Any, metadata: Metadata, path: str | Path) -> None:
    """Write an ONNX model with its metadata and a checksum."""
    import onnx

    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=metadata.to_json())
    model.metadata_props.add(key=CHECKSUMS['.onnx'], value=NO_CHECKSUM)
    with atomic_write(path) as draft:
        onnx.save(model, draft)
        _seal(draft, '.onnx')


def _seal(path: Path, suffix: str) -> None:
    """Write the checksum of a file into it, in place of zeros."""
    found = checksum(path, suffix)
    assert found is not None
    with path.open('rb+') as file:
        file.seek(found.position)
        file.write(found.computed.encode())


def _name(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Check that inputs and outputs have their names."""
    found = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if found != ([*inputs], [*outputs]):
        raise RuntimeError(f'the exporter named inputs and outputs {found} instead of {(inputs, outputs)}')


def require_standard(model: Any) -> None:
    """Raise a ``UserError`` if an ONNX model needs operators that are not standard."""
    domains = {node.domain for node in _nodes(model.graph)} | {function.domain for function in model.functions}
    if strange := sorted(domain for domain in domains if domain not in ('', 'ai.onnx')):
        raise UserError(f'the file would need operators of {", ".join(strange)}, which no runtime has')


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField('g'):
                yield from _nodes(attribute.g)


def write_openvino(onnx_file: str | Path, metadata: Metadata, path: str | Path) -> None:
    """Write an ONNX file as OpenVINO's IR: ``path`` and, beside it, the weights as ``.bin``."""
    import openvino

    model = openvino_core().read_model(str(onnx_file))
    model.set_rt_info(metadata.to_json(), KEY)
    model.set_rt_info(NO_CHECKSUM, CHECKSUMS['.xml'])
    openvino.save_model(model, str(path), compress_to_fp16=False)
    _seal(Path(path), '.xml')


def write_pt2(program: Any, metadata: Metadata, path: str | Path) -> None:
    """Write the program itself, for ``torch.export.load``."""
    with _quiet(), atomic_write(path) as draft:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={f'{KEY}.json': json.dumps(json.loads(metadata.to_json()))})
        draft.write_bytes(buffer.getvalue())
