"""The forms in which a convolution runs on a CPU: equal results, and the form that the table of modes names."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from dispatch_counter import Counted

from mmplugin.layers import ConvNorm, convolution

LAST = torch.channels_last


def small_map(memory_format=LAST) -> torch.Tensor:
    return torch.randn(2, 8, 7, 5).contiguous(memory_format=memory_format)


def test_prepacked_weights_follow_the_weights_and_are_not_copied():
    module = ConvNorm(8, 16, 3, post_act='relu').eval()
    x = small_map()
    with torch.no_grad():
        plain = module(x)
        module.fuse()
        with Counted() as operators:
            torch.testing.assert_close(module(x), plain)
        assert 'mkldnn._convolution_pointwise.default' in operators.names
        twin = pickle.loads(pickle.dumps(copy.deepcopy(module)))
        assert twin.conv._prepacked is None
        torch.testing.assert_close(twin(x), plain)
        twin.conv.weight.zero_()
        torch.testing.assert_close(twin(x), twin.conv.bias.relu().view(-1, 1, 1).expand(plain.shape))
        for size in ((5, 5), (64, 40)):
            x = torch.randn(2, 8, *size)
            expected = F.conv2d(x, module.conv.weight, module.conv.bias, padding=1).relu()
            torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    x.requires_grad_()
    module(x).sum().backward()  # saliency maps need gradients of the image through a fused network
    assert x.grad.any()


@pytest.mark.parametrize('trained_norm', [False, True])
@pytest.mark.parametrize(('pre_act', 'bias'), [(None, False), ('gelu', True)])
def test_small_maps_take_matrix_products_and_large_ones_convolutions(monkeypatch, pre_act, bias, trained_norm):
    module = ConvNorm(8, 16, pre_act=pre_act, bias=bias).double()
    for value in (module.norm.running_mean, module.norm.weight, module.norm.bias):
        torch.nn.init.normal_(value)
    module.norm.train(trained_norm)
    wide = torch.randn(2, 20, 7, 5, dtype=torch.double).contiguous(memory_format=LAST)
    # a share of the channels is a view
    for x in (small_map().double(), small_map(torch.contiguous_format).double(), wide[:, 4:12]):
        x = x.detach().requires_grad_()
        activated = F.gelu(x) if pre_act else x
        expected = module.norm(F.conv2d(activated, module.conv.weight, module.conv.bias))
        wanted = torch.autograd.grad(expected.square().sum(), [x, *module.parameters()])
        for max_pixels, is_matmul in ((70, True), (69, False)):
            monkeypatch.setattr(convolution, 'MAX_MATMUL_PIXELS', max_pixels)
            with Counted() as operators:
                result = module(x)
            assert any(name.startswith('aten.convolution') for name in operators.names) != is_matmul
            torch.testing.assert_close(result, expected)
            for a, b in zip(torch.autograd.grad(result.square().sum(), [x, *module.parameters()]), wanted, strict=True):
                torch.testing.assert_close(a, b)
            with torch.no_grad():
                torch.testing.assert_close(module(x), expected)


def test_small_maps_take_matrix_products_once_fused_but_not_in_an_export():
    module = ConvNorm(8, 16, post_act='relu').eval()
    x = small_map()
    with torch.no_grad():
        expected = module(x)
        module.fuse()
        with Counted() as operators:
            result = module(x)
        exported = torch.export.export(module, (x,))
    assert not [name for name in operators.names if 'convolution' in name]
    assert result.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(result, expected)
    assert [node for node in exported.graph.nodes if 'conv2d' in str(node.target)]
    torch.testing.assert_close(exported.module()(x), expected)


def test_the_constructor_is_that_of_conv2d():
    ours, plain = (
        cls(4, 6, 3, 2, 1, 1, 2, padding_mode='reflect') for cls in (convolution.FastConv2d, torch.nn.Conv2d)
    )
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))


def test_a_network_built_in_inference_mode_runs():
    from mmplugin.backbones import EfficientViTMSRA

    with torch.inference_mode():
        model = EfficientViTMSRA('m0').eval()
        expected = model(torch.ones(1, 3, 64, 64))
        for a, b in zip(model.fuse()(torch.ones(1, 3, 64, 64)), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert not any(parameter.is_inference() for parameter in model.stem.parameters())  # so they can be packed
