"""torch.compile: custom operators that keep their promises, no graph break, few recompilations."""

import pytest
import torch
from random_backbones import FEW_BLOCKS, build

from mmplugin.layers import OffsetBias


def test_custom_operators_pass_opcheck():
    q, k, v = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 48), torch.randn(2, 4, 6, 48)
    talking_heads = [torch.randn(4, 4), torch.randn(4, 1), torch.randn(4, 4)]
    offsets = OffsetBias(4, 3, 2).offsets(8, 6).detach()
    for heads in ([], talking_heads):
        torch.library.opcheck(torch.ops.mmplugin.attend.default, (q, k, v, offsets, heads, True, 2, 8, 6))
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    for height, width in ((6, 10), (5, 9)):
        torch.library.opcheck(torch.ops.mmplugin.upsample2x.default, (x, height, width))


# Sides that are odd and even at every stride, of images whose maps are larger than a window of 7x7 at stride 64.
SIZES = [(500 + 25 * i, 560 + 41 * (3 * i % 8)) for i in range(8)]


@pytest.mark.no_cover  # measuring the compiler's own Python code would take another half of the time
@pytest.mark.parametrize(
    'name',
    [
        pytest.param('EfficientFormer', marks=pytest.mark.slow),
        'EfficientFormerV2',
        pytest.param('EfficientViTMSRA', marks=pytest.mark.slow),
    ],
)
def test_compiling_breaks_no_graph_and_seldom_recompiles(name):
    model = build(name, FEW_BLOCKS[name]).eval().fuse()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for height, width in SIZES:
            x = torch.randn(1, 3, height, width)
            maps = compiled(x)
        for a, b in zip(maps, model(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
    assert len(graphs) <= 3  # the first, and two more
