"""Strategies that more than one file uses."""

import torch
from hypothesis import strategies as st

from mmplugin.backbones import FAMILIES

SEEDS = st.integers(0, 2**16)


def tensor(seed: int, *shape: int) -> torch.Tensor:
    """Return normally distributed numbers that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def archs(draw: st.DrawFn, family: str | None = None) -> tuple[str, dict]:
    """Return a family and a small arch of it as a dict."""
    family = family or draw(st.sampled_from([*FAMILIES]))
    stages = len(FAMILIES[family].STRIDES)
    depths = draw(st.tuples(*[st.integers(1, 2)] * stages))
    if family == 'evit':
        heads = draw(st.tuples(*[st.integers(1, 3)] * stages))
        widths = tuple(draw(st.integers(3, 4)) * 4 * count for count in heads)
        kernels = draw(st.lists(st.sampled_from((1, 3, 5)), min_size=max(heads), max_size=4).map(tuple))
        arch = dict(widths=widths, depths=depths, heads=heads, kernels=kernels)
        optional = dict(
            key_dims=st.tuples(*[st.integers(1, 8)] * stages),
            merge_ratio=st.sampled_from((1, 2.5, (3, 1.5))),
            downsample_hidden=st.tuples(*[st.tuples(st.integers(1, 9), st.integers(1, 9))] * (stages - 1)),
            hidden=st.tuples(*[st.tuples(*[st.integers(1, 9)] * depth) for depth in depths]),
        )
        return family, arch | draw(st.fixed_dictionaries({}, optional=optional))
    widths = draw(st.tuples(*[st.sampled_from((4, 6, 8, 12))] * stages))
    arch = dict(widths=widths, depths=depths, attention_blocks=draw(st.integers(0, depths[-1])))
    key = draw(st.sampled_from(('ratios', 'hidden', None if family == 'v1' else 'ratios')))
    if key:
        number = st.sampled_from((1, 2, 3, 1.5)) if key == 'ratios' else st.integers(1, 20)
        arch[key] = tuple(draw(st.tuples(*[number] * depth)) for depth in depths)
    if family == 'v2' and draw(st.booleans()):
        arch['attention_blocks'] = tuple(draw(st.integers(0, depth)) for depth in depths[2:])
    optional = dict(key_dim=st.integers(1, 8), value_dim=st.integers(1, 8))
    return family, arch | draw(st.fixed_dictionaries({}, optional=optional))


def build_random(family: str, arch: str | dict, seed: int, **arguments) -> torch.nn.Module:
    """Return a backbone whose norms, scales and bias tables are random, in evaluation mode."""
    torch.manual_seed(seed)
    model = FAMILIES[family](arch, **arguments)
    for key, value in model.state_dict().items():
        if key.endswith(('norm.weight', 'running_var')):
            value.uniform_(0.3, 2.0)
        elif 'layer_scale' in key or key.endswith(('.table', 'norm.bias', 'running_mean')):
            value.normal_(0, 0.5)
    return model.eval()
