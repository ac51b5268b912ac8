"""Any arch in any dtype converts to the format of another project and back without a change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.strategies import SEEDS, archs, build_random

from mmplugin.backbones import FAMILIES
from mmplugin.convert import convert
from mmplugin.convert.classifier import head_shapes
from mmplugin.convert.export import export
from mmplugin.errors import UserError

DTYPES = st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.float64))


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def weights_of(which: tuple[str, dict], seed: int, dtype: torch.dtype, **arguments) -> dict[str, torch.Tensor]:
    state = build_random(*which, seed, **arguments).state_dict()
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


@settings(max_examples=10)
@given(which=archs(), seed=SEEDS, dtype=DTYPES, channels=st.sampled_from((1, 3, 4)))
def test_a_converted_file_converts_to_itself(which, seed, dtype, channels):
    weights = weights_of(which, seed, dtype, in_channels=channels)
    result = convert({'state_dict': weights, 'meta': {'backbone': {'arch': which[1]}}})
    assert result.backbone['arch'] == which[1]
    assert result.backbone.get('in_channels', 3) == channels
    assert_same(result.state_dict, weights)
    FAMILIES[which[0]](**{k: v for k, v in result.backbone.items() if k != 'type'}).load_state_dict(weights)


@settings(max_examples=10)
@given(
    which=archs(), seed=SEEDS, dtype=DTYPES, project=st.sampled_from(('timm', 'original')), classes=st.integers(1, 5)
)
def test_export_and_conversion_are_inverse(which, seed, dtype, project, classes):
    family, arch = which
    weights = weights_of(which, seed, dtype)
    head = {
        key: torch.rand(value.shape).to(dtype) if value.is_floating_point() else torch.tensor(seed)
        for key, value in head_shapes(family, arch['widths'][-1], classes, True).items()
    }
    first = convert({'state_dict': weights, 'head': head, 'meta': {'backbone': {'arch': arch}}})
    exported, _ = export(first, project)
    again = convert(exported, arch)
    assert again.origin == project
    resized = {key for key in again.state_dict if key in again.resized}  # EfficientViT's windows: equal up to rounding
    assert_same({k: v for k, v in again.state_dict.items() if k not in resized},
                {k: v for k, v in weights.items() if k not in resized})  # fmt: skip
    assert_same(again.head, head)


@settings(max_examples=20)
@given(which=archs(), seed=SEEDS, data=st.data())
def test_a_missing_renamed_or_broken_tensor_is_never_accepted(which, seed, data):
    weights = weights_of(which, seed, torch.float32)
    key = data.draw(st.sampled_from([key for key, value in weights.items() if value.is_floating_point()]))
    how = data.draw(st.sampled_from(['missing', 'renamed', 'nan', 'inf', 'shape', 'dtype']))
    value = weights.pop(key)
    broken = value.clone()
    broken.view(-1)[-1] = torch.nan if how == 'nan' else torch.inf
    replaced = {
        'missing': {},
        'renamed': {key + '_': value},
        'nan': {key: broken},
        'inf': {key: broken},
        'shape': {key: value[None]},
        'dtype': {key: value.int()},
    }[how]
    with pytest.raises(UserError):
        convert({'state_dict': weights | replaced, 'meta': {'backbone': {'arch': which[1]}}})
