"""Backbones of any arch: map sizes, folding, and arch dicts that are damaged."""

import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties.strategies import SEEDS, archs, build_random, tensor
from random_backbones import SMALLEST, build

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError

ODD = st.sampled_from([
    None, True, -1, 0, 1, 3, 7, 2.5, math.nan, math.inf, '', 'x', 'abcd', {}, {'a': 1}, (), (1,), (0, 0, 0), (0,) * 4,
    (8,) * 3, (8,) * 4, (-8,) * 4, (True,) * 4, ((1,),) * 4, ((),) * 4, (None,) * 4, [[8]] * 4, (8, 8, 8.0, 8),
])  # fmt: skip


@pytest.fixture(scope='module')
def smallest():
    return [build(*which).eval() for which in SMALLEST]


@settings(max_examples=30)
@given(height=st.integers(32, 200), width=st.integers(32, 200))
@example(height=32, width=33)
@example(height=65, width=127)
def test_maps_have_size_divided_by_stride_rounded_up(smallest, height, width):
    for model in smallest:
        with torch.no_grad():
            maps = model(tensor(0, 1, 3, height, width))
        wanted = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in model.out_strides]
        assert [tuple(level.shape[2:]) for level in maps] == wanted
        assert all(level.isfinite().all() for level in maps)


@settings(max_examples=20)
@given(height=st.integers(1, 31), width=st.integers(1, 200), turned=st.booleans())
def test_smaller_images_are_refused(smallest, height, width, turned):
    size = (width, height) if turned else (height, width)
    for model in smallest:
        with pytest.raises(UserError, match='both sides must be 32 or more'):
            model(torch.zeros(1, 3, *size))


@settings(max_examples=20)
@given(which=archs(), seed=SEEDS, height=st.integers(32, 80), width=st.integers(32, 80))
def test_fused_backbones_give_the_same_maps(which, seed, height, width):
    model, x = build_random(*which, seed), tensor(seed, 2, 3, height, width)
    with torch.no_grad():
        before, after = model(x), copy.deepcopy(model).fuse()(x)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.std() + 1))


@settings(max_examples=15)
@given(which=archs(), seed=SEEDS)
def test_inference_and_recorded_evaluation_agree(which, seed):
    """They fold norms in different places and run other kernels."""
    model, x = build_random(*which, seed), tensor(seed, 1, 3, 64, 40)
    recorded = model(x)
    with torch.no_grad():
        inferred = model(x)
    for a, b in zip(inferred, recorded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.detach().std() + 1))


@st.composite
def damaged_archs(draw: st.DrawFn) -> tuple[str, object]:
    """Return an arch dict with up to two odd values."""
    family, arch = draw(archs())
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from([*arch, 'drop_path_rate', 'other', 5]))
        how = draw(st.sampled_from(['replace', 'inside', 'inside', 'remove', 'shorter', 'longer']))
        value = arch.get(key)
        if how == 'remove':
            arch.pop(key, None)
        elif how == 'replace' or not isinstance(value, tuple) or not value:
            arch[key] = draw(ODD)
        elif how == 'inside':
            at = draw(st.integers(0, len(value) - 1))
            arch[key] = (*value[:at], draw(ODD), *value[at + 1 :])
        else:
            arch[key] = value[:-1] if how == 'shorter' else (*value, value[-1])
    return family, arch


@settings(max_examples=150)
@given(damaged_archs())
@example(('v1', dict(widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), attention_blocks=2)))
@example(('v2', dict(widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), attention_blocks=1, ratios=((1,),))))
@example(('evit', dict(widths=(16, 16, 16), depths=(1, 1, 1), heads=(1, 1, 3), kernels=(3, 3, 3))))
@example(('evit', dict(widths=(16, 16, 16), depths=(1, 1, 1), heads=(1, 1, 2), kernels=(3,))))
@example(('evit', dict(widths=(16, 16, 16), depths=(1, 1, 1), heads=(1, 1, 1), kernels=(4,))))
@example(('evit', []))
def test_a_damaged_arch_is_refused_with_a_message_or_works(which):
    family, arch = which
    try:
        model = FAMILIES[family](arch).eval()
    except UserError as error:
        if '\n' in str(error):
            pytest.fail(f'more than one line: {error}')
        return
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 40, 64))
    assert [level.shape[1] for level in maps] == list(model.out_channels)
