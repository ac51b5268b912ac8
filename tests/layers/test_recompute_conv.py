"""Frozen norms folded, less kept for backward, attention in chunks, fusing, compiling: equal, and really done."""

import copy

import pytest
import torch
from dispatch_counter import Counted
from mmengine.registry import MODELS
from torch.utils._python_dispatch import TorchDispatchMode

import mmplugin  # noqa: F401
from mmplugin.layers import ConvNorm, OffsetBias, UpstreamBias, attend, attention

ARCHS = [('EfficientFormer', 'l1'), ('EfficientFormerV2', 's0'), ('EfficientViTMSRA', 'm0')]


def build(name: str, arch: str, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(dict(type=name, arch=arch, **settings))
    for key, value in model.state_dict().items():
        if 'layer_scale' in key or 'attention_biases' in key or key.endswith('running_mean'):
            value.normal_(0.1, 0.1)
        elif key.endswith(('norm.weight', 'running_var')):
            value.uniform_(0.5, 1.0)
    return model


@pytest.mark.parametrize('layer_scale', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    'settings',
    [
        dict(gelu=True),
        dict(kernel_size=3, stride=2, bias=False),
        dict(kernel_size=3, groups=6, gelu=True),
        dict(kernel_size=1, stride=2),
    ],
)
def test_folding_equals_convolution_norm_and_scale(settings, memory_format, layer_scale):
    module = ConvNorm(6, 6, **settings).double()
    for value in (module.norm.running_mean, module.norm.weight, module.norm.bias):
        torch.nn.init.normal_(value)
    module.norm.running_var.uniform_(0.5, 2)
    module.norm.eval()
    scale = torch.randn(6, dtype=torch.double, requires_grad=True) if layer_scale else None
    x = torch.randn(2, 6, 9, 7, dtype=torch.double).contiguous(memory_format=memory_format).requires_grad_()

    def plain(x, scale, conv, norm):
        x = torch.nn.functional.gelu(x) if module.gelu else x
        x = norm(conv(x))
        return x if scale is None else x * scale.view(-1, 1, 1)

    inputs = [x, *module.parameters(), *([scale] if layer_scale else [])]
    folded = module(x, scale)
    expected = plain(x, scale, module.conv, module.norm)
    torch.testing.assert_close(folded, expected)
    grad = torch.randn_like(folded)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(torch.autograd.grad(folded, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(module(x.clone(), scale), expected)
    module.norm.train()
    learning = module(x, scale)
    assert not torch.allclose(learning, expected)  # folding ends where the norm trains
    expected = plain(x, scale, module.conv, module.norm)
    torch.testing.assert_close(learning, expected)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(torch.autograd.grad(learning, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_frozen_training_runs_no_norm_and_equals_the_plain_network(name, arch):
    frozen = build(name, arch, norm_eval=True).train()
    with Counted() as operators:
        maps = frozen(torch.randn(2, 3, 64, 96))
    assert not [op for op in operators.names if 'batch_norm' in op]
    trained = build(name, arch).train()
    with Counted() as operators:
        trained(torch.randn(2, 3, 64, 96))
    assert [op for op in operators.names if 'batch_norm' in op]

    sum(level.square().mean() for level in maps).backward()  # and backward of all of it
    assert all(parameter.grad.isfinite().all() for parameter in frozen.parameters())
    x = torch.randn(1, 3, 64, 96)
    recomputed = copy.deepcopy(frozen).double()(x.double())
    with torch.no_grad():
        plain = copy.deepcopy(frozen).double().eval()(x.double())
    for a, b in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(a, b)


def kept_bytes(model: torch.nn.Module, forward, x: torch.Tensor) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = forward(x)
    assert len(maps) > 2
    return sum(kept.values())


@pytest.mark.parametrize(
    ('name', 'arch', 'theirs', 'share'),
    [
        ('EfficientFormerV2', 's2', 'efficientformerv2_s2', 0.5),
        ('EfficientFormerV2', 's0', 'efficientformerv2_s0', 0.6),
        ('EfficientFormer', 'l1', 'efficientformer_l1', 0.6),
        ('EfficientViTMSRA', 'm0', 'efficientvit_m0', 0.6),
        ('EfficientViTMSRA', 'm4', 'efficientvit_m4', 0.6),
    ],
)
def test_bytes_kept_for_backward_against_timm(timm, name, arch, theirs, share):
    ours = build(name, arch, norm_eval=True, drop_path_rate=0.0).train()
    other = timm.create_model(theirs, num_classes=0, **({} if 'vit' in theirs else dict(drop_path_rate=0.0)))
    other.train()
    for module in other.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    x = torch.randn(2, 3, 224, 224)  # the size that timm's V1 is made for; larger ones favour us

    def forward(x):
        return other.forward_intermediates(x, indices=list(range(len(ours.STRIDES))), intermediates_only=True)

    assert kept_bytes(ours, ours, x) <= share * kept_bytes(other, forward, x)


@pytest.mark.parametrize('kind', [OffsetBias, UpstreamBias])
@pytest.mark.parametrize('talking', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_attention_in_chunks_equals_the_definition(monkeypatch, talking, stride, kind):
    height, width, heads = 6, 5, 2
    queries = -(-height // stride) * -(-width // stride)
    bias = kind(heads, 3, stride).double()
    torch.nn.init.normal_(bias.table)
    mixing = tuple(torch.nn.Conv2d(heads, heads, 1).double() for _ in range(2)) if talking else None
    shapes = [(2, heads, 4, queries), (2, heads, 4, height * width), (2, heads, 3, height * width)]
    q, k, v = (torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    logits = q.transpose(2, 3) @ k / 2 + bias(height, width)
    maps = mixing[1](mixing[0](logits).softmax(-1)) if talking else logits.softmax(-1)
    expected = (maps @ v.transpose(2, 3)).transpose(2, 3).flatten(1, 2)
    inputs = [q, k, v, bias.table, *([p for conv in mixing for p in conv.parameters()] if talking else [])]
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, grad)
    # a row at a time, two rows, all at once, and all kept for backward
    for limit, kept in ((1, 0), (2 * heads * 5 * 30, 0), (10**9, 0), (10**9, 10**9)):
        monkeypatch.setattr(attention, 'MAX_LOGITS', limit)
        monkeypatch.setattr(attention, 'MAX_LOGITS_CPU_INFERENCE', limit)
        monkeypatch.setattr(attention, 'MAX_KEPT_LOGITS', kept)
        result = attend(q, k, v, bias, (height, width), mixing).flatten(2)
        torch.testing.assert_close(result, expected)
        with torch.no_grad():
            torch.testing.assert_close(attend(q, k, v, bias, (height, width), mixing).flatten(2), expected)
        for a, b in zip(torch.autograd.grad(result, inputs, grad), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_attention_never_holds_all_pairs_of_a_large_map():
    largest = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.untyped_storage().nbytes())
            return result

    heads, size = 8, (64, 64)  # 2048 px at stride 32
    q = torch.randn(1, heads, 16, 64 * 64, requires_grad=True)
    mixing = (torch.nn.Conv2d(heads, heads, 1), torch.nn.Conv2d(heads, heads, 1))
    with Watched():
        attend(q, q, q, OffsetBias(heads, 7), size, mixing).sum().backward()
    assert max(largest) <= 4 * attention.MAX_LOGITS * 2
    assert max(largest) < 4 * heads * (64 * 64) ** 2 / 8


@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_no_table_is_resized_after_the_first_image_of_a_size(name, arch):
    model = build(name, arch).eval()
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        model(x)
        with Counted() as operators:
            model(x)
    assert not [op for op in operators.names if 'upsample_bicubic' in op]


@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_fused_is_equal_says_so_and_refuses_to_train(name, arch):
    model = build(name, arch).eval()
    x = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        plain = model(x)
        assert 'fused' not in repr(model)
        fused = model.fuse().fuse()(x)
        with Counted() as operators:
            model(x)
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not [op for op in operators.names if 'batch_norm' in op]
    assert 'fused: inference only' in repr(model)
    assert model.eval() is model
    with pytest.raises(ValueError, match=r'is fused.*cannot train; build a new one'):
        model.train()


def test_operators_for_the_compiler_keep_their_promises():
    q, k, v = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 48), torch.randn(2, 4, 6, 48)
    mixing = [torch.randn(4, 4), torch.randn(4, 1), torch.randn(4, 4)]
    offsets = OffsetBias(4, 3, 2).offsets(8, 6).detach()
    for mixed in ([], mixing):
        torch.library.opcheck(torch.ops.mmplugin.attend.default, (q, k, v, offsets, mixed, 'offset', 2, 8, 6))
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.mmplugin.doubled.default, (x,))


SMALL = {
    'EfficientFormer': dict(widths=(64,) * 4, depths=(1, 1, 1, 2), attention_blocks=1),
    'EfficientFormerV2': dict(widths=(64,) * 4, depths=(1, 1, 1, 1), attention_blocks=1, ratios=((4,),) * 4),
    'EfficientViTMSRA': dict(widths=(256,) * 3, depths=(1, 1, 1), heads=(2, 2, 2), kernels=(3, 3)),
}


@pytest.mark.parametrize('name', list(SMALL))
def test_compiling_breaks_no_graph_and_seldom_recompiles(name):
    model = build(name, SMALL[name]).eval().fuse()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    sizes = [(700 + 33 * i, 900 + 64 * (i % 7) + i) for i in range(20)]
    with torch.no_grad():
        for height, width in sizes:
            x = torch.randn(1, 3, height, width)
            maps = compiled(x)
        for a, b in zip(maps, model(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()
    assert len(graphs) <= 3  # the first, and two more


@pytest.mark.parametrize(('name', 'arch'), ARCHS)
def test_copies_averages_and_autocast_of_a_folded_network(name, arch):
    model = build(name, arch, norm_eval=True).train()
    x = torch.randn(2, 3, 64, 64)
    model(x)[0].mean().backward()
    twin = copy.deepcopy(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    for other in (twin, average):
        for a, b in zip(model(x), other(x), strict=True):
            torch.testing.assert_close(a, b)
    with torch.autocast('cpu', torch.bfloat16):
        maps = model(x)
    model.zero_grad()
    sum(level.float().square().mean() for level in maps).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
