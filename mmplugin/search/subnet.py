"""Sub-networks: ordinary backbones whose weights are slices of a larger network's weights."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmplugin.backbones import FAMILIES, DenseBackbone
from mmplugin.errors import UserError
from mmplugin.layers.attention_bias import OffsetBias, UpstreamBias

from .pools import Pools
from .slices import Blocks, Slices, take
from .space import without_blocks


def family_of(backbone: nn.Module) -> str:
    """Return 'v1', 'v2' or 'evit'."""
    for family, cls in FAMILIES.items():
        if type(backbone) is cls:
            return family
    names = ', '.join(cls.__name__ for cls in FAMILIES.values())
    raise UserError(f'the backbone is a {type(backbone).__name__}; a search needs one of {names}')


def arguments_of(backbone: DenseBackbone) -> dict[str, Any]:
    """Return the constructor's arguments of a backbone, without ``arch`` and ``init_cfg``."""
    arguments: dict[str, Any] = {
        name: getattr(backbone, name)
        for name in ('in_channels', 'out_indices', 'frozen_stages', 'norm_eval', 'drop_path_rate', 'with_cp')
    }
    family = family_of(backbone)
    for name, module in backbone.named_modules():
        if family != 'evit' and isinstance(module, OffsetBias) and '.downsample.' not in name:
            bias = 'upstream' if isinstance(module, UpstreamBias) else 'offset'
            arguments |= dict(attention_bias=bias, bias_grid=module.grid)
            break
    if family == 'v1':
        arguments['out_norm'] = len(backbone.out_norms) > 0
    return arguments


def subnet(
    backbone: DenseBackbone,
    arch: str | dict,
    kept: Mapping[str, Tensor] | None = None,
    blocks: Blocks | None = None,
) -> DenseBackbone:
    """Return an ordinary backbone of a smaller arch that has slices of ``backbone``'s weights.

    Args:
        backbone: The large network. It is not changed.
        arch: A smaller arch: no stage has more blocks, no size is larger.
        kept: For each pool of ``Pools`` that shrinks, the channels to keep; by default, the first ones.
        blocks: For each stage, the blocks to keep; by default, the first ones, and of those with attention the last.
    """
    small = backbone.explicit(arch)
    slices = Slices(Pools(family_of(backbone), backbone.settings), small, blocks, kept)
    own = backbone.state_dict()
    first_parameter = next(backbone.parameters())
    result = type(backbone)(small, **arguments_of(backbone)).to(first_parameter.device, first_parameter.dtype)
    weights = {}
    for key in result.state_dict():
        source = slices.source(key)
        weights[key] = take(own[source], slices.selections(source, own[source].shape))
    result.load_state_dict(weights, strict=True)
    return result.train(backbone.training)


@torch.no_grad()
def keep_logit_scale_(small: DenseBackbone, large: DenseBackbone) -> None:
    """Scale the queries of a sub-network, so that attention logits are sums over fewer channels and else unchanged.

    A backbone divides logits by the root of its own query channels, which are fewer than those of the large network.
    """
    pairs: Iterable[Any] = zip(small.modules(), large.modules(), strict=True)
    for module, before in pairs:
        own, old = getattr(module, 'key_dim', None), getattr(before, 'key_dim', None)
        if own is None or old is None or own == old:
            continue
        factor = math.sqrt(own / old)
        if hasattr(module, 'dws'):
            for dw in module.dws:
                dw.norm.weight.mul_(factor)
                dw.norm.bias.mul_(factor)
        elif hasattr(module, 'qkv'):
            for tensor in (module.qkv.weight, module.qkv.bias):
                tensor.unflatten(0, (module.heads, -1))[:, :own].mul_(factor)
        else:
            module.q.norm.weight.mul_(factor)
            module.q.norm.bias.mul_(factor)


def without_blocks_of(backbone: DenseBackbone, gone: Collection[tuple[int, int]]) -> DenseBackbone:
    """Return a backbone without some blocks, each given by stage and block; the others keep their weights."""
    family = family_of(backbone)
    explicit = backbone.explicit(backbone.settings)
    old = [[j for j in range(depth) if (i, j) not in gone] for i, depth in enumerate(explicit['depths'])]
    result: Any = type(backbone)(without_blocks(family, explicit, gone), **arguments_of(backbone))
    for module, before in ((result.stem, backbone.stem), (result.out_norms, backbone.out_norms)):
        module.load_state_dict(before.state_dict())
    stages: Iterable[Any] = zip(result.stages, backbone.stages, old[: backbone.num_stages], strict=True)
    for stage, before, kept in stages:
        stage.downsample.load_state_dict(before.downsample.state_dict())
        for block, j in zip(stage.blocks, kept, strict=True):
            block.load_state_dict(before.blocks[j].state_dict())
    first_parameter = next(backbone.parameters())
    return result.to(first_parameter.device, first_parameter.dtype).train(backbone.training)
