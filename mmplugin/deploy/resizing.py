"""Resizing inside of an exported file: nodes of ONNX before those of the model."""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mmplugin.deploy.metadata import Metadata
from mmplugin.deploy.samples import Sample

# Sides are rounded in integers: (2 * side * a + b) / 2b is int(side * a / b + 0.5), and rounding keeps the smaller of
# two sides smaller. Floats of 32 bits would be off by one.
FIT = """
    swapped = Gather (original, ones_to_zeros)
    scaled = Mul (original, fit_swapped)
    doubled = Mul (scaled, two)
    parts = Add (doubled, swapped)
    whole = Mul (swapped, two)
    rounded = Div (parts, whole)
    valid = Min (rounded, fit)
"""
LONG_AND_SHORT = """
    longest = ReduceMax <keepdims = 1> (original)
    shortest = ReduceMin <keepdims = 1> (original)
    by_longest = Mul (original, twice_long)
    parts_of_longest = Add (by_longest, longest)
    whole_longest = Mul (longest, two)
    rounded_by_longest = Div (parts_of_longest, whole_longest)
    by_shortest = Mul (original, twice_short)
    parts_of_shortest = Add (by_shortest, shortest)
    whole_shortest = Mul (shortest, two)
    rounded_by_shortest = Div (parts_of_shortest, whole_shortest)
    valid = Min (rounded_by_longest, rounded_by_shortest)
"""
# As cv2.resize with INTER_LINEAR, which rounds at other places: 1 gray level apart. Floats, because onnxruntime cuts
# the digits off where it resizes integers.
RESIZE = """
    channels_first = Transpose <perm = [2, 0, 1]> (image)
    batch = Unsqueeze (channels_first, first)
    floats = Cast <to = 1> (batch)
    sizes = Concat <axis = 0> (batch_and_channels, valid)
    interpolated = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (floats, , , sizes)
    whole_levels = Round (interpolated)
    {again}
    bytes = Cast <to = 2> (whole_levels{twice})
    one_image = Squeeze (bytes, first)
    unpadded = Transpose <perm = [1, 2, 0]> (one_image)
"""
# As before, for what is resized up to a multiple.
AGAIN = """
    enlarged = Add (smaller, multiple_less_one)
    wholes = Div (enlarged, multiple)
    valid = Mul (wholes, multiple)
    sizes_again = Concat <axis = 0> (batch_and_channels, valid)
    interpolated_again = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (
        whole_levels, , , sizes_again
    )
    whole_levels_again = Round (interpolated_again)
"""
PAD = """
    missing = Sub (fit, valid)
    pads = Concat <axis = 0> (three_zeros, missing, zero)
    resized = Pad <mode = "constant"> (unpadded, pads)
"""


def front(metadata: Metadata) -> Any:
    """Return the model from ``image`` of any size to ``resized``, ``valid`` and ``original``."""
    import onnx

    rule, constants = metadata.resize, dict(two=[2], first=[0], batch_and_channels=[1, 3])
    if 'fit' in rule:
        steps = FIT
        constants |= dict(ones_to_zeros=[1, 0], fit=rule['fit'], fit_swapped=rule['fit'][::-1])
    else:
        steps = LONG_AND_SHORT
        constants |= dict(twice_long=[2 * rule['long']], twice_short=[2 * rule['short']])
    if metadata.dynamic:
        pad = 'resized = Identity (unpadded)'
    else:
        pad = PAD
        constants |= dict(three_zeros=[0, 0, 0], zero=[0])
    resize, multiple = RESIZE.format(again='', twice=''), rule.get('multiple', 1)
    if multiple > 1:  # `valid` is the size after both steps
        resize = RESIZE.replace('valid', 'smaller').format(again=AGAIN, twice='_again')
        steps = steps.replace('valid', 'smaller')
        constants |= dict(multiple=[multiple], multiple_less_one=[multiple - 1])
    texts = [f'int64[{len(value)}] {name} = {{{", ".join(map(str, value))}}}' for name, value in constants.items()]
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        front (uint8[rows, columns, 3] image) => (uint8[height, width, 3] resized, int64[2] valid, int64[2] original)
        <{', '.join(texts)}> {{ original = Shape <end = 2> (image) {steps} {resize} {pad} }}
    """)
    _rename_(model.graph)
    return model


def _rename_(graph: Any) -> None:
    """Give what is between inputs and outputs names that no model has."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {''}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept else f'resize/{name}' for name in names]
    for value in graph.initializer:
        value.name = f'resize/{value.name}'


def add_resizing_(model: Any, metadata: Metadata) -> None:
    """Let a model take ``image`` of any size in place of ``image``, ``valid`` and ``original``."""
    added, graph = front(metadata).graph, model.graph
    for node in graph.node:
        node.input[:] = ['resized' if name == 'image' else name for name in node.input]
    nodes = [*added.node, *copy.deepcopy(graph.node)]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend(added.initializer)
    graph.input.extend(added.input)


def resizer(metadata: Metadata, runtime: str) -> Callable[[Sample], Sample]:
    """Return a function that resizes the image of a sample as a file does in a runtime, for PyTorch to take."""
    import onnx

    from mmplugin.deploy.runtimes import open_file

    with TemporaryDirectory() as folder:
        path = Path(folder, 'front.onnx')
        onnx.save(front(metadata), str(path))
        run = open_file(path, runtime)

    def resize(sample: Sample) -> Sample:
        found = run(dict(image=np.ascontiguousarray(sample.source)))
        height, width = found['valid'].tolist()
        return sample.replaced(found['resized'][:height, :width])

    return resize
