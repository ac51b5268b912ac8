"""The part of docs/operators.md that is not measured."""

NOTES = """\

## What is the same, and what is not

- The wrappers in `mmcv.ops` stay mmcv's; only the C++ functions under them are replaced. Boxes of equal score keep
  their order; `soft_nms` breaks ties as mmcv's CPU kernel does, swaps included.
- RoIAlign with `aligned=True` and a RoI of negative size gives zeros, as mmcv's GPU kernel does; its CPU kernel raises.
- The focal losses use log-sigmoid, where mmcv takes `log(max(p, FLT_MIN))`: the same function, with all its digits.
- RoIPool, both focal losses: mmcv compiles them for GPUs only; these run on CPUs too.
- Half precision (bfloat16 too) is summed in float32 and rounded once at the end.
- An empty RoI of RoIPool gets no gradient; mmcv gives its gradient to the first pixel of the image.

## Compile and export

The operators are `torch.library` operators (`mmplugin::nms`, `mmplugin::roi_align`, ...) with shapes for tracing, so
`torch.compile(..., fullgraph=True)` and `torch.export` keep them as one node each; how many boxes NMS keeps stays
dynamic. A saved exported program needs `import mmplugin.ops.library` before it is loaded. Not tried: ONNX (its
exporter needs a translation of each `mmplugin::` operator, which is not written yet) and GPUs.

## Every other operator

exists by name, so that `import mmcv.ops` works, and raises when called: the error names the operator and the way to a
compiled one.
"""
