"""Parts of a backbone whose times add up to the time of the whole.

| Kind                   | Families | Sizes                                                                          |
|------------------------|----------|--------------------------------------------------------------------------------|
| `stem`                 | all      | output channels of each convolution                                            |
| `downsample`           | v1, v2   | input and output channels                                                      |
| `attention_downsample` | v2       | input and output channels                                                      |
| `pool`                 | v1       | width, hidden channels; the whole block                                        |
| `attention`            | v1, v2   | width, key and value channels of each head                                     |
| `ffn`                  | all      | width, hidden channels; in evit with the depthwise convolution before it       |
| `window_attention`     | evit     | width, heads, key channels of each head, kernel elements (summed over heads)   |
| `merge`                | evit     | input, hidden and output channels of patch merging                             |
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from mmplugin.backbones import FAMILIES
from mmplugin.backbones import efficientformer as v1
from mmplugin.backbones import efficientformer_v2 as v2
from mmplugin.backbones import efficientvit_msra as evit
from mmplugin.errors import UserError


class Part(NamedTuple):
    """A part of a backbone: its kind, the stage on whose map it works (from 0), and the sizes that decide its time."""

    kind: str
    stage: int
    sizes: tuple[int, ...]


def parts_of(family: str, arch: str | dict) -> list[Part]:
    """Return the parts of a backbone in the order in which they run.

    Args:
        family: 'v1', 'v2' or 'evit'.
        arch: Name of a variant, or a dict.
    """
    explicit = explicit_arch(family, arch)
    builder = {'v1': _parts_v1, 'v2': _parts_v2, 'evit': _parts_evit}[family]
    return list(builder(explicit))


def explicit_arch(family: str, arch: str | dict) -> dict[str, Any]:
    """Return an arch as a dict with all keys."""
    if family not in FAMILIES:
        raise UserError(f'there is no family {family!r}; allowed: {", ".join(FAMILIES)}')
    return FAMILIES[family].explicit(arch)


def _parts_v1(arch: dict[str, Any]) -> Iterator[Part]:
    widths = arch['widths']
    yield _stem(widths[0], 2)
    for i, width in enumerate(widths):
        if i:
            yield Part('downsample', i, (widths[i - 1], width))
        last = i == len(widths) - 1
        first_attention = arch['depths'][i] - arch['attention_blocks'] if last else arch['depths'][i]
        for j, hidden in enumerate(arch['hidden'][i]):
            if j < first_attention:
                yield Part('pool', i, (width, hidden))
            else:
                yield Part('attention', i, (width, arch['key_dim'], arch['value_dim']))
                yield Part('ffn', i, (width, hidden))


def _parts_v2(arch: dict[str, Any]) -> Iterator[Part]:
    widths, attention_blocks = arch['widths'], (0, 0, *arch['attention_blocks'])
    yield _stem(widths[0], 2)
    for i, width in enumerate(widths):
        if i:
            yield Part('attention_downsample' if i == 3 else 'downsample', i, (widths[i - 1], width))
        first_attention = arch['depths'][i] - attention_blocks[i]
        for j, hidden in enumerate(arch['hidden'][i]):
            if j >= first_attention:
                yield Part('attention', i, (width, arch['key_dim'], arch['value_dim']))
            yield Part('ffn', i, (width, hidden))


def _parts_evit(arch: dict[str, Any]) -> Iterator[Part]:
    widths = arch['widths']
    yield _stem(widths[0], 8)
    for i, (width, heads) in enumerate(zip(widths, arch['heads'], strict=True)):
        if i:
            before, after = arch['downsample_hidden'][i - 1]
            merge_hidden = round(arch['merge_ratio'][i - 1] * widths[i - 1])
            yield Part('ffn', i - 1, (widths[i - 1], before))
            yield Part('merge', i, (widths[i - 1], merge_hidden, width))
            yield Part('ffn', i, (width, after))
        taps = sum(kernel**2 for kernel in arch['kernels'][:heads])
        for hidden in arch['hidden'][i]:
            yield Part('ffn', i, (width, hidden))
            yield Part('window_attention', i, (width, heads, arch['key_dims'][i], taps))
            yield Part('ffn', i, (width, hidden))


def _stem(width: int, divisor: int) -> Part:
    """Return the stem, whose first convolution has ``width // divisor`` channels, each other one twice as many."""
    channels = []
    while divisor:
        channels.append(width // divisor)
        divisor //= 2
    return Part('stem', 0, tuple(channels))


def boundaries(backbone: Any) -> list[tuple[Part, nn.Module]]:
    """Return the parts of a built backbone in the order in which they run, each with the module it starts with.

    The time from the start of one module to the start of the next counts for the first part: residual connections and
    changes of layout between modules count for the part before them. Sizes are read from the modules.

    Args:
        backbone: One of the three families, fused or not.
    """
    stem = Part('stem', 0, tuple(_convolutions(backbone.stem)))
    found: list[tuple[Part, nn.Module]] = [(stem, backbone.stem)]
    for i, stage in enumerate(backbone.stages):
        if not isinstance(stage.downsample, nn.Identity):
            found += _downsampling(stage.downsample, i)
        for block in stage.blocks:
            found += _block(block, i)
    return found


def _downsampling(module: Any, stage: int) -> list[tuple[Part, nn.Module]]:
    if isinstance(module, evit.Downsample):
        merge = module.merge
        sizes = (merge.conv1.conv.in_channels, merge.conv1.conv.out_channels, merge.conv3.conv.out_channels)
        return [
            (_evit_ffn(module.ffn0, stage - 1), module.dw0),
            (Part('merge', stage, sizes), merge),
            (_evit_ffn(module.ffn1, stage), module.dw1),
        ]
    attention = isinstance(module, v2.Downsample) and module.attn is not None
    conv = module.conv.conv if isinstance(module, v2.Downsample) else module.conv
    kind = 'attention_downsample' if attention else 'downsample'
    return [(Part(kind, stage, (conv.in_channels, conv.out_channels)), module)]


def _block(block: Any, stage: int) -> list[tuple[Part, nn.Module]]:
    if isinstance(block, v1.PoolBlock):
        conv = block.mlp.fc1.conv
        return [(Part('pool', stage, (conv.in_channels, conv.out_channels)), block)]
    if isinstance(block, v1.AttentionBlock):
        mixer, linear = block.token_mixer, block.mlp.fc1
        attention = Part('attention', stage, (mixer.qkv.in_features, mixer.key_dim, mixer.value_dim))
        # The first norm is preceded by a change of layout, which is a view.
        return [(attention, block.norm1), (Part('ffn', stage, (linear.in_features, linear.out_features)), block.norm2)]
    if isinstance(block, v2.Block):
        conv = block.mlp.fc1.conv
        parts: list[tuple[Part, nn.Module]] = [(Part('ffn', stage, (conv.in_channels, conv.out_channels)), block.mlp)]
        if block.token_mixer is not None:
            channels, keys = block.token_mixer.q.conv.in_channels, block.token_mixer.q.conv.out_channels
            heads, values = block.token_mixer.heads, block.token_mixer.v.conv.out_channels
            parts.insert(0, (Part('attention', stage, (channels, keys // heads, values // heads)), block.token_mixer))
        return parts
    if isinstance(block, evit.Block):
        return [
            (_evit_ffn(block.ffn0, stage), block.dw0),
            (_window_attention(block.mixer, stage), block.mixer),
            (_evit_ffn(block.ffn1, stage), block.dw1),
        ]
    raise TypeError(f'{type(block).__name__} is no block of a backbone of this package')


def _evit_ffn(mlp: Any, stage: int) -> Part:
    return Part('ffn', stage, (mlp.pw1.conv.in_channels, mlp.pw1.conv.out_channels))


def _window_attention(mixer: Any, stage: int) -> Part:
    kernels = [dw.conv.weight[0].numel() for dw in mixer.dws]
    sizes = (mixer.proj.conv.in_channels, len(kernels), mixer.dws[0].conv.in_channels, sum(kernels))
    return Part('window_attention', stage, sizes)


def _convolutions(module: nn.Module) -> Iterator[int]:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            yield conv.out_channels
