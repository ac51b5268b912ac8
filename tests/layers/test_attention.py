"""Attention in chunks: equal to its definition, in little memory, with tables that are resized once per size."""

import pytest
import torch
from dispatch_counter import Counted
from random_backbones import SMALLEST, build

from mmplugin.layers import OffsetBias, UpstreamBias, attend, attention


@pytest.mark.parametrize('kind', [OffsetBias, UpstreamBias])
@pytest.mark.parametrize('talking', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_attention_in_chunks_equals_the_definition(monkeypatch, talking, stride, kind):
    height, width, heads = 6, 5, 2
    queries = -(-height // stride) * -(-width // stride)
    bias = kind(heads, 3, stride).double()
    torch.nn.init.normal_(bias.table)
    talk = tuple(torch.nn.Conv2d(heads, heads, 1).double() for _ in range(2)) if talking else None
    shapes = [(2, heads, 4, queries), (2, heads, 4, height * width), (2, heads, 3, height * width)]
    q, k, v = (torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    logits = q.transpose(2, 3) @ k / 2 + bias(height, width)
    maps = talk[1](talk[0](logits).softmax(-1)) if talking else logits.softmax(-1)
    expected = (maps @ v.transpose(2, 3)).transpose(2, 3).flatten(1, 2)
    inputs = [q, k, v, bias.table, *([p for conv in talk for p in conv.parameters()] if talking else [])]
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, grad)
    # a row at a time, two rows, all at once, and all at once with attention maps saved for backward
    for limit, saved in ((1, 0), (2 * heads * 5 * 30, 0), (10**9, 0), (10**9, 10**9)):
        monkeypatch.setattr(attention, 'MAX_LOGITS', limit)
        monkeypatch.setattr(attention, 'MAX_LOGITS_CPU_INFERENCE', limit)
        monkeypatch.setattr(attention, 'MAX_SAVED_LOGITS', saved)
        result = attend(q, k, v, bias, (height, width), talk).flatten(2)
        torch.testing.assert_close(result, expected)
        with torch.no_grad():
            torch.testing.assert_close(attend(q, k, v, bias, (height, width), talk).flatten(2), expected)
        for a, b in zip(torch.autograd.grad(result, inputs, grad), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_values_whose_sum_exceeds_float16_stay_finite():
    """The bias after the softmax is applied to the sum of all values."""
    heads, size = 2, (32, 32)
    torch.manual_seed(0)
    bias, talk = OffsetBias(heads, 7), [torch.nn.Conv2d(heads, heads, 1) for _ in range(2)]
    q, k = torch.randn(2, 1, heads, 4, 1024)
    v = torch.full((1, heads, 3, 1024), 80.0)  # sum: 81,920; the largest float16 is 65,504
    with torch.no_grad():
        expected = attend(q, k, v, bias, size, talk)
        bias, talk = bias.half(), [conv.half() for conv in talk]
        found = attend(q.half(), k.half(), v.half(), bias, size, talk)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=1.0)


def test_attention_never_holds_all_pairs_of_a_large_map():
    heads, size = 8, (64, 64)  # 2048 px at stride 32
    q = torch.randn(1, heads, 16, 64 * 64, requires_grad=True)
    talking_heads = torch.nn.Conv2d(heads, heads, 1), torch.nn.Conv2d(heads, heads, 1)
    with Counted() as operators:
        attend(q, q, q, OffsetBias(heads, 7), size, talking_heads).sum().backward()
    assert operators.most_bytes <= 4 * attention.MAX_LOGITS * 2
    assert operators.most_bytes < 4 * heads * (64 * 64) ** 2 / 8


@pytest.mark.parametrize(('name', 'arch'), SMALLEST)
def test_no_table_is_resized_after_the_first_image_of_a_size(name, arch):
    model = build(name, arch).eval()
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        model(x)
        with Counted() as operators:
            model(x)
    assert not [op for op in operators.names if 'upsample_bicubic' in op]
