"""Every private function of torch has a fallback: take it away, and the numbers stay."""

import pytest
import torch
from random_backbones import SMALLEST, build

from mmplugin.layers import ConvNorm, OffsetBias, cached_constant, torch_internals

OPERATORS = [name for name in vars(torch_internals) if name.startswith(('_aten', '_mkldnn'))]
SETTINGS = [dict(pre_act='gelu'), dict(kernel_size=3, stride=2, groups=4, pre_act='gelu', bias=False)]


def training_and_inference(name: str, arch: str) -> list[torch.Tensor]:
    """Return gradients and feature maps of a backbone, with maps of 1 pixel to 32 x 48."""
    model = build(name, arch, norm_eval=True).train()
    sum(level.square().mean() for level in model(torch.ones(2, 3, 64, 96))).backward()
    with torch.no_grad():
        maps = model.eval()(torch.ones(2, 3, 64, 96))
        return [*(parameter.grad for parameter in model.parameters()), *maps, *model.fuse()(torch.ones(2, 3, 640, 96))]


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_a_backbone_without_any_private_operator_computes_the_same(monkeypatch, name, arch):
    assert len(OPERATORS) == 6
    expected = training_and_inference(name, arch)
    for operator in OPERATORS:
        assert getattr(torch_internals, operator) is not None  # as in the tested version of torch
        monkeypatch.setattr(torch_internals, operator, None)
    for a, b in zip(training_and_inference(name, arch), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gelu_in_place_and_its_backward_equal_autograd(monkeypatch):
    x = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    expected = torch.nn.functional.gelu(x)
    grad = torch.randn_like(x)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    for available in (True, False):
        if not available:
            monkeypatch.setattr(torch_internals, '_aten_gelu_', None)
            monkeypatch.setattr(torch_internals, '_aten_gelu_backward', None)
        overwritten, overwritten_grad = x.detach().clone(), grad.clone()
        torch_internals.gelu_(overwritten)
        torch_internals.gelu_backward_(overwritten_grad, x.detach())
        torch.testing.assert_close(overwritten, expected)
        torch.testing.assert_close(overwritten_grad, wanted)


@pytest.mark.parametrize(
    'needs', [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_convolution_backward_returns_what_is_needed(monkeypatch, needs):
    conv = torch.nn.Conv2d(4, 6, 3, 2, 1, groups=2).double()
    x = torch.randn(2, 4, 7, 5, dtype=torch.double, requires_grad=True)
    result = conv(x)
    grad = torch.randn_like(result)
    wanted = torch.autograd.grad(result, [x, conv.weight, conv.bias], grad)
    for available in (True, False):
        if not available:
            monkeypatch.setattr(torch_internals, '_aten_convolution_backward', None)
        found = torch_internals.convolution_backward(grad, x.detach(), conv.weight.detach(), conv, needs)
        for a, b, need in zip(found, wanted, needs, strict=True):
            if need:
                torch.testing.assert_close(a, b)
            else:
                assert a is None


@pytest.mark.parametrize('private', ['_disable_current_modes', '_tensors_have_versions'])
def test_a_changed_table_and_an_export_give_right_numbers_without(monkeypatch, private):
    monkeypatch.setattr(torch_internals, private, None)
    bias = OffsetBias(2, 4)
    torch.nn.init.normal_(bias.table)

    class Biased(torch.nn.Module):
        def forward(self, x):
            return x + bias(11, 13)  # a size that nothing has cached

    x = torch.randn(1, 2, 143, 143)
    with torch.no_grad():
        exported = torch.export.export(Biased(), (x,)).module()(x)
        fresh = OffsetBias(2, 4)
        fresh.load_state_dict(bias.state_dict())
        torch.testing.assert_close(bias(11, 13), fresh(11, 13))  # no fake tensor has stayed
        torch.testing.assert_close(exported, x + fresh(11, 13))
        bias.table.mul_(2)
        torch.testing.assert_close(bias(11, 13), 2 * fresh(11, 13))


def test_a_fake_tensor_is_never_cached(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch_internals, '_disable_current_modes', None)
    ones = cached_constant(lambda size: torch.ones(size))
    with FakeTensorMode():
        assert type(ones(3)) is not torch.Tensor
    assert type(ones(3)) is torch.Tensor
    assert ones(3) is ones(3)


def test_compiled_small_maps_stay_convolutions_without_a_way_to_ask_about_sizes(monkeypatch):
    module, x = ConvNorm(8, 16).eval(), torch.randn(1, 8, 5, 7)
    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        expected = module.fuse() or module(x)
        for available in (True, False):
            if not available:
                monkeypatch.setattr(torch_internals, '_find_statically_known_true', lambda: None)
            torch.compiler.reset()
            targets.clear()
            torch.testing.assert_close(
                torch.compile(module, backend=backend, dynamic=False, fullgraph=True)(x), expected
            )
            assert any('linear' in target for target in targets) == available
            assert any('conv2d' in target for target in targets) != available
    torch.compiler.reset()
