"""ConvNorm and the networks made of it: folded norms, memory saved for backward, fusing, and who overwrites what."""

import copy

import pytest
import torch
import torch.nn.functional as F
from dispatch_counter import Counted
from random_backbones import SMALLEST, build

from mmplugin.layers import ConvNorm


def random_conv_norm(*channels: int, **settings) -> ConvNorm:
    module = ConvNorm(*channels, **settings).double()
    for value in (module.norm.running_mean, module.norm.weight, module.norm.bias):
        torch.nn.init.normal_(value)
    module.norm.running_var.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize('layer_scale', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    'settings',
    [
        dict(pre_act='gelu'),
        dict(post_act='relu'),
        dict(kernel_size=3, stride=2, bias=False, post_act='relu'),
        dict(kernel_size=3, groups=6, pre_act='gelu'),
        dict(kernel_size=1, stride=2),
    ],
)
def test_folding_equals_activation_convolution_norm_and_scale(settings, memory_format, layer_scale):
    module = random_conv_norm(6, 6, **settings)
    scale = torch.randn(6, dtype=torch.double, requires_grad=True) if layer_scale else None
    x = torch.randn(2, 6, 9, 7, dtype=torch.double).contiguous(memory_format=memory_format).requires_grad_()
    inputs = [x, *module.parameters(), *([scale] if layer_scale else [])]

    def definition() -> torch.Tensor:
        activated = F.gelu(x) if module.pre_act else x
        result = module.norm(F.conv2d(activated, module.conv.weight, module.conv.bias, *geometry))
        result = result if scale is None else result * scale.view(-1, 1, 1)
        return result.relu() if module.post_act else result

    geometry = module.conv.stride, module.conv.padding, 1, module.conv.groups
    results = {}
    for trained in (False, True):
        module.norm.train(trained)
        results[trained], expected = module(x, scale), definition()
        torch.testing.assert_close(results[trained], expected)
        grad = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, inputs, grad)
        for a, b in zip(torch.autograd.grad(results[trained], inputs, grad), wanted, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(module(x, scale), expected)
    assert not torch.allclose(results[True], results[False])  # a norm that trains is not folded


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="pre_act is 'relu', allowed: 'gelu', None"):
        ConvNorm(4, 4, pre_act='relu')


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('side', [4, 80])  # norm folded or not, matrix product or convolution
def test_the_input_is_overwritten_only_if_the_caller_allows_it(side, fused):
    module = random_conv_norm(8, 16, pre_act='gelu', post_act='relu').eval()
    x = torch.randn(1, 8, side, side, dtype=torch.double)
    given, owned = x.clone(), x.clone()
    if fused:
        module.fuse()
    with torch.no_grad():
        expected = module(given)
        assert torch.equal(given, x)
        torch.testing.assert_close(module(owned, overwrite_input=True), expected)
    torch.testing.assert_close(owned, F.gelu(x))
    with torch.enable_grad():  # autograd needs the input for backward
        given.requires_grad_()
        torch.testing.assert_close(module(given, overwrite_input=True), expected)
    assert torch.equal(given, x)


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_no_module_of_a_backbone_overwrites_an_input_that_it_does_not_own(name, arch):
    overwritten = []

    def remember(module, args, kwargs):
        module.given = [(x, x.clone()) for x in args if isinstance(x, torch.Tensor)]

    def compare(module, args, kwargs, result):
        if not kwargs.get('overwrite_input') and not all(torch.equal(x, before) for x, before in module.given):
            overwritten.append(type(module).__name__)

    model = build(name, arch).eval()
    for module in model.modules():
        module.register_forward_pre_hook(remember, with_kwargs=True)
        module.register_forward_hook(compare, with_kwargs=True)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
        model.fuse()(torch.randn(1, 3, 64, 96))
    assert not overwritten


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_frozen_training_runs_no_norm_and_equals_the_plain_network(name, arch):
    frozen = build(name, arch, norm_eval=True).train()
    with Counted() as operators:
        maps = frozen(torch.randn(2, 3, 64, 96))
    assert not [op for op in operators.names if 'batch_norm' in op]
    trained = build(name, arch).train()
    with Counted() as operators:
        trained(torch.randn(2, 3, 64, 96))
    assert [op for op in operators.names if 'batch_norm' in op]

    sum(level.square().mean() for level in maps).backward()
    assert all(parameter.grad.isfinite().all() for parameter in frozen.parameters())
    x = torch.randn(1, 3, 64, 96)
    recomputed = copy.deepcopy(frozen).double()(x.double())
    with torch.no_grad():
        plain = copy.deepcopy(frozen).double().eval()(x.double())
    for a, b in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(a, b)


def bytes_saved_for_backward(model: torch.nn.Module, forward, x: torch.Tensor) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict(keep_vars=True).values()}
    saved: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = forward(x)
    assert len(maps) > 2
    return sum(saved.values())


@pytest.mark.parametrize(
    ('name', 'arch', 'baseline_name', 'share'),
    [
        ('EfficientFormerV2', 's2', 'efficientformerv2_s2', 0.5),
        ('EfficientFormerV2', 's0', 'efficientformerv2_s0', 0.6),
        ('EfficientFormer', 'l1', 'efficientformer_l1', 0.6),
        ('EfficientViTMSRA', 'm0', 'efficientvit_m0', 0.6),
        ('EfficientViTMSRA', 'm4', 'efficientvit_m4', 0.6),
    ],
)
def test_bytes_saved_for_backward_against_timm(timm, name, arch, baseline_name, share):
    ours = build(name, arch, norm_eval=True, drop_path_rate=0.0).train()
    baseline = timm.create_model(
        baseline_name, num_classes=0, **({} if 'vit' in baseline_name else dict(drop_path_rate=0.0))
    )
    baseline.train()
    for module in baseline.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    x = torch.randn(2, 3, 224, 224)  # the size that timm's V1 is made for; larger ones favor ours

    def forward(x):
        return baseline.forward_intermediates(x, indices=list(range(len(ours.STRIDES))), intermediates_only=True)

    assert bytes_saved_for_backward(ours, ours, x) <= share * bytes_saved_for_backward(baseline, forward, x)


@pytest.mark.parametrize(('name', 'arch'), [('EfficientFormer', 'l1'), ('EfficientFormerV2', 's0')])
def test_drop_path_saves_little_more_than_its_masks(name, arch):
    x = torch.randn(2, 3, 128, 128)
    saved = {}
    for rate in (0.0, 0.2):
        model = build(name, arch, norm_eval=True, drop_path_rate=rate).train()
        saved[rate] = bytes_saved_for_backward(model, model, x)
    assert saved[0.2] <= 1.3 * saved[0.0]


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
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


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
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
