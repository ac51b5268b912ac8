"""Multiply-adds and bytes of the parts of a backbone."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from mmplugin.backbones import FAMILIES
from mmplugin.backbones.efficientvit_msra import WINDOW
from mmplugin.search.parts import Part

BYTES = 4  # of a float
HEADS = 8  # of v1 and v2
HALVING_KEYS, HALVING_VALUES = 16, 64  # channels of each head in the attention downsampling of v2


class Layer(NamedTuple):
    """A convolution, or a matrix product of attention: what it computes, reads and writes for one image."""

    macs: int
    weights: int
    read: int
    written: int


def cost(family: str, part: Part, size: Sequence[int], batch: int = 1) -> tuple[int, int]:
    """Return the multiply-adds of a part, and the bytes that its layers read and write.

    Args:
        family: 'v1', 'v2' or 'evit'.
        part: A part of a backbone.
        size: Height and width of the images.
        batch: Images.
    """
    layers = list(_layers(family, part, size))
    moved = sum(layer.weights + batch * (layer.read + layer.written) for layer in layers)
    return batch * sum(layer.macs for layer in layers), BYTES * moved


def _halved(size: Sequence[int], times: int) -> tuple[int, int]:
    height, width = size
    for _ in range(times):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _map(family: str, stage: int, size: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the feature map of a stage."""
    return _halved(size, FAMILIES[family].STRIDES[stage].bit_length() - 1)


def _area(size: Sequence[int]) -> int:
    return size[0] * size[1]


def _conv(before: int, after: int, taps: int, pixels_in: int, pixels_out: int, depthwise: bool = False) -> Layer:
    weights = after * taps * (1 if depthwise else before)
    return Layer(weights * pixels_out, weights, before * pixels_in, after * pixels_out)


def _attend(heads: int, channels: int, queries: int, keys: int, passes: int) -> Layer:
    """Return logits and weighted sums of ``channels`` (key plus value) per head; ``passes`` over the logits."""
    logits = heads * queries * keys
    return Layer(logits * channels, 0, passes * logits, passes * logits)


def _layers(family: str, part: Part, size: Sequence[int]) -> Iterator[Layer]:
    sizes, pixels = part.sizes, _area(_map(family, part.stage, size))
    if part.kind == 'stem':
        channels = (3, *sizes)
        for i, (before, after) in enumerate(pairwise(channels)):
            yield _conv(before, after, 9, _area(_halved(size, i)), _area(_halved(size, i + 1)))
    elif part.kind in ('ffn', 'pool'):
        width, hidden = sizes
        if part.kind == 'pool':
            yield Layer(0, 0, width * pixels, width * pixels)
        if family == 'evit':
            yield _conv(width, width, 9, pixels, pixels, depthwise=True)
        yield _conv(width, hidden, 1, pixels, pixels)
        if family == 'v2':
            yield _conv(hidden, hidden, 9, pixels, pixels, depthwise=True)
        yield _conv(hidden, width, 1, pixels, pixels)
    elif part.kind == 'downsample':
        before, after = sizes
        yield _conv(before, after, 9, _area(_map(family, part.stage - 1, size)), pixels)
    elif part.kind == 'attention_downsample':
        yield from _attention_downsample(sizes, _area(_map(family, part.stage - 1, size)), pixels)
    elif part.kind == 'attention':
        at_stride_32 = pixels if family == 'v1' or part.stage == 3 else _area(_map(family, part.stage + 1, size))
        yield from _attention(sizes, pixels, at_stride_32, family == 'v2')
    elif part.kind == 'merge':
        yield from _merge(sizes, _area(_map(family, part.stage - 1, size)), pixels)
    else:
        yield from _window_attention(sizes, _map(family, part.stage, size))


def _attention(sizes: Sequence[int], pixels: int, tokens: int, is_v2: bool) -> Iterator[Layer]:
    width, keys, values = sizes
    if tokens < pixels:
        yield _conv(width, width, 9, pixels, tokens, depthwise=True)
    yield _conv(width, HEADS * (2 * keys + values), 1, tokens, tokens)
    # Talking heads mix the heads of all pairs twice.
    yield _attend(HEADS, keys + values + (2 * HEADS if is_v2 else 0), tokens, tokens, 5 if is_v2 else 3)
    if is_v2:
        yield _conv(HEADS * values, HEADS * values, 9, tokens, tokens, depthwise=True)
    yield _conv(HEADS * values, width, 1, pixels, pixels)


def _attention_downsample(sizes: Sequence[int], pixels_in: int, pixels: int) -> Iterator[Layer]:
    before, after = sizes
    keys, values = HEADS * HALVING_KEYS, HEADS * HALVING_VALUES
    yield _conv(before, after, 9, pixels_in, pixels)
    yield _conv(before, before, 9, pixels_in, pixels, depthwise=True)
    yield _conv(before, keys, 1, pixels, pixels)
    yield _conv(before, keys + values, 1, pixels_in, pixels_in)
    yield _attend(HEADS, HALVING_KEYS + HALVING_VALUES, pixels, pixels_in, 3)
    yield _conv(values, values, 9, pixels_in, pixels, depthwise=True)
    yield _conv(values, after, 1, pixels, pixels)


def _merge(sizes: Sequence[int], pixels_in: int, pixels: int) -> Iterator[Layer]:
    before, hidden, after = sizes
    yield _conv(before, hidden, 1, pixels_in, pixels_in)
    yield _conv(hidden, hidden, 9, pixels_in, pixels, depthwise=True)
    yield _conv(hidden, hidden // 4, 1, 1, 1)
    yield _conv(hidden // 4, hidden, 1, 1, 1)
    yield _conv(hidden, after, 1, pixels, pixels)


def _window_attention(sizes: Sequence[int], size: Sequence[int]) -> Iterator[Layer]:
    width, heads, keys, taps = sizes
    if max(size) <= WINDOW:
        window = tokens = _area(size)
    else:
        window = WINDOW**2
        tokens = window * -(-size[0] // WINDOW) * -(-size[1] // WINDOW)  # padded to whole windows
    share = width // heads
    for _ in range(heads):
        yield _conv(share, 2 * keys + share, 1, tokens, tokens)
    yield Layer(keys * taps * tokens, keys * taps, heads * keys * tokens, heads * keys * tokens)
    yield _attend(heads, keys + share, tokens, window, 3)
    yield _conv(width, width, 1, _area(size), _area(size))
