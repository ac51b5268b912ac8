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
dynamic. A saved exported program needs `import mmplugin.ops.library` before it is loaded. Not tried: GPUs.

## ONNX

`pip install onnx onnxscript onnxruntime`, then give `torch.onnx.export` the translations of these operators:

```python
import torch
from mmplugin.ops import nms, roi_align
from mmplugin.ops.onnx import translations


class Head(torch.nn.Module):
    def forward(self, maps, boxes, scores):
        dets, _ = nms(boxes, scores, iou_threshold=0.5)
        return dets, roi_align(maps, torch.cat((torch.zeros_like(dets[:, :1]), dets[:, :4]), 1), 7, 0.25)


boxes = torch.rand(50, 4).cumsum(1) * 32
any_number = {0: torch.export.Dim.DYNAMIC}
torch.onnx.export(
    Head().eval(), (torch.randn(1, 8, 32, 32), boxes, torch.rand(50)), 'head.onnx', dynamo=True,
    dynamic_shapes=(None, any_number, any_number), custom_translation_table=translations(),
)
```

The size that NMS leaves is one of the exported program, `u0`. Ask for it with `dets.shape[0]`, or build on `dets` as
above: `len(dets)` must be a number and stops the export.

- nms, batched_nms: NonMaxSuppression. `offset` 1 moves the far corners, thresholds are 0 to 1, all is decided in
  float32. onnxruntime gives the best first, as torch does; the standard leaves the order open.
- roi_align, avg: RoiAlign, `half_pixel` if aligned, otherwise `output_half_pixel`. Half is summed in float32.
  onnxruntime 1.23 knows it in opsets 16 to 21; the exporter's own choice is 20.
- Refused with a message: roi_align, max (ONNX takes the largest weighted pixel, not the largest interpolated sample),
  and roi_pool (MaxRoiPool rounds each RoI to whole pixels first).
- Left out: soft_nms, which ONNX does not have, and the deformable convolutions: onnxruntime 1.23 has none for CPUs.

Functions of `mmcv.ops` that stand on these go the same way. Backbones need no translation, only one image size a file:

```python
import mmplugin, torch
from mmengine.registry import MODELS

backbone, image = MODELS.build(dict(type='EfficientFormerV2', arch='s0')).eval().fuse(), torch.randn(1, 3, 512, 512)
with torch.no_grad():
    torch.onnx.export(backbone, (image,), 'backbone.onnx', dynamo=True)
```

`python -m pytest tests/test_ops_onnx.py` compares onnxruntime with the reference and with torch: NMS keeps the same
boxes, RoIAlign differs by 2e-6 at most, one backbone of each family by 1e-4 of its largest value at most.

## Every other operator

exists by name, so that `import mmcv.ops` works, and raises when called: the error names the operator and the way to a
compiled one.
"""
