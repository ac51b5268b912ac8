"""Folded convolutions and attention on the device: results and gradients against plain float64 code on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from gpu.support import (
    DEVICE,
    ON_GPU,
    SMALLEST,
    assert_near,
    assert_near_gradients,
    build,
    gradients_of,
    image,
    loss_of,
)
from torch import Tensor, nn

from mmplugin.layers import ConvNorm, OffsetBias, UpstreamBias, attend

pytestmark = pytest.mark.gpu

# Largest difference over largest value. In float32 the sums have up to some thousand terms.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 5e-5}

# (stride, height, width). First few enough pairs that attention maps are saved, then so many that attention runs in
# chunks: 4 million logits of an image on a GPU, fewer on a CPU.
MAP_SIZES = [(1, 14, 14), (1, 32, 32), (2, 48, 40)] if ON_GPU else [(1, 10, 9), (1, 20, 18), (2, 28, 24)]


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def on_device(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.detach().to(DEVICE, dtype).requires_grad_() for tensor in tensors]


def compare(found: Tensor, inputs: list[Tensor], expected: Tensor, plain_inputs: list[Tensor], dtype: torch.dtype):
    assert found.device.type == DEVICE.type
    assert found.dtype == dtype
    assert_near(found, expected, TOLERANCES[dtype])
    grad = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, plain_inputs, grad)
    gradients = torch.autograd.grad(found, inputs, grad.to(found))
    assert all(gradient.device.type == DEVICE.type for gradient in gradients)
    named, named_wanted = ({f'input {i}': g for i, g in enumerate(values)} for values in (gradients, wanted))
    assert_near_gradients(named, named_wanted, TOLERANCES[dtype])


def plain_conv_norm(x: Tensor, module: ConvNorm, weight: Tensor, bias: Tensor | None, norm: list[Tensor]) -> Tensor:
    """The definition, in eval mode: activation, convolution, batch norm, activation."""
    x = F.gelu(x) if module.pre_act == 'gelu' else x
    conv, stats = module.conv, [module.norm.running_mean, module.norm.running_var]
    x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    x = F.batch_norm(x, *(value.detach().cpu().double() for value in stats), *norm, False, 0.0, module.norm.eps)
    return x.relu() if module.post_act == 'relu' else x


@pytest.mark.parametrize('dtype', list(TOLERANCES))
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('settings', 'scaled'),
    [
        (dict(pre_act='gelu'), True),
        (dict(kernel_size=3, stride=2, bias=False, post_act='relu'), False),
        (dict(kernel_size=3, groups=16, pre_act='gelu'), True),
        (dict(kernel_size=1, stride=2), False),
    ],
    ids=['1x1', '3x3-stride-2', 'depthwise', '1x1-stride-2'],
)
def test_a_convolution_with_a_frozen_norm(settings, scaled, memory_format, dtype):
    module = ConvNorm(16, 16, **settings)
    for value in (module.norm.weight, module.norm.bias, module.norm.running_mean):
        nn.init.normal_(value)
    module.norm.running_var.uniform_(0.5, 2.0)
    module = module.to(DEVICE, dtype).eval()

    # In float64 on the CPU the inputs are those of the module on the device, rounded to its type.
    parameters = [module.conv.weight, module.norm.weight, module.norm.bias]
    parameters += [] if module.conv.bias is None else [module.conv.bias]
    weight, gamma, beta, *bias = (p.detach().cpu().double().requires_grad_() for p in parameters)
    x, layer_scale = leaf(2, 16, 13, 17), leaf(16)
    expected = plain_conv_norm(x, module, weight, bias[0] if bias else None, [gamma, beta])
    expected = expected * layer_scale.view(-1, 1, 1) if scaled else expected
    plain_inputs = [x, weight, gamma, beta, *bias, *([layer_scale] if scaled else [])]

    moved, moved_scale = on_device([x, layer_scale], dtype)
    found = module(moved.contiguous(memory_format=memory_format), moved_scale if scaled else None)
    compare(found, [moved, *parameters, *([moved_scale] if scaled else [])], expected, plain_inputs, dtype)
    with torch.no_grad():
        assert_near(module(moved, moved_scale if scaled else None), expected, TOLERANCES[dtype], 'without gradients')


def plain_bias(bias: OffsetBias, table: Tensor, height: int, width: int) -> Tensor:
    """(heads, queries, keys), from the definition of either kind of bias."""
    grid = table.view(1, bias.heads, bias.grid, bias.grid)
    if isinstance(bias, UpstreamBias):
        matrix = _pairs(grid[0], bias.stride)[None]
        queries = len(range(0, height, bias.stride)) * len(range(0, width, bias.stride))
        return F.interpolate(matrix, size=(queries, height * width), mode='bicubic', align_corners=False)[0]
    return _pairs(F.interpolate(grid, size=(height, width), mode='bicubic', align_corners=True)[0], bias.stride)


def _pairs(table: Tensor, stride: int) -> Tensor:
    """Look up a table (heads, |dy|, |dx|) for every pair of query and key."""
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in table.shape[1:]), indexing='ij')
    keys = torch.stack((rows, columns), -1)
    offsets = (keys[::stride, ::stride].flatten(0, 1)[:, None] - keys.flatten(0, 1)).abs()
    return table[:, offsets[..., 0], offsets[..., 1]]


@pytest.mark.parametrize('dtype', list(TOLERANCES))
@pytest.mark.parametrize(('stride', 'height', 'width'), MAP_SIZES)
@pytest.mark.parametrize('talking', [False, True])
@pytest.mark.parametrize('kind', [OffsetBias, UpstreamBias])
def test_attention(kind, talking, stride, height, width, dtype):
    heads, queries = 8, len(range(0, height, stride)) * len(range(0, width, stride))
    bias = kind(heads, 7, stride)
    nn.init.normal_(bias.table)
    talking_heads = tuple(nn.Conv2d(heads, heads, 1) for _ in range(2)) if talking else None
    modules = [bias, *(talking_heads or ())]
    plain_parameters = [p.detach().double().requires_grad_() for module in modules for p in module.parameters()]
    table, *mixing = plain_parameters
    q, k, v = leaf(2, heads, 4, queries), leaf(2, heads, 4, height * width), leaf(2, heads, 3, height * width)

    logits = q.transpose(2, 3) @ k / 2 + plain_bias(bias, table, height, width)
    attention = (F.conv2d(logits, *mixing[:2]) if talking else logits).softmax(-1)
    attention = F.conv2d(attention, *mixing[2:]) if talking else attention
    expected = (attention @ v.transpose(2, 3)).transpose(2, 3).flatten(1, 2)

    for module in modules:
        module.to(DEVICE, dtype)
    inputs = on_device([q, k, v], dtype)
    result = attend(*inputs, bias, (height, width), talking_heads)
    assert result.shape[2:] == (-(-height // stride), -(-width // stride))
    parameters = [p for module in modules for p in module.parameters()]
    compare(result.flatten(2), [*inputs, *parameters], expected, [q, k, v, *plain_parameters], dtype)
    with torch.no_grad():
        inference = attend(*inputs, bias, (height, width), talking_heads).flatten(2)
        assert_near(inference, expected, TOLERANCES[dtype], 'without gradients')


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_a_backbone_computes_the_same_gradients_as_on_the_cpu(name, arch):
    x = image(2, 96, 160).double()
    model = build(name, arch, norm_eval=True).double().train()
    loss_of(maps := model(x)).backward()
    plain = build(name, arch, norm_eval=True).cpu().double().train()
    loss_of(plain_maps := plain(x.cpu())).backward()
    for a, b in zip(maps, plain_maps, strict=True):
        assert_near(a, b, 1e-8)
    assert_near_gradients(gradients_of(model), gradients_of(plain), 1e-5)  # the loss is computed in float32
