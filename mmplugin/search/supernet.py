"""The model of a config as a supernet: its space, its channels in order, and the networks taken from it."""

import copy
from typing import Any

import torch

from .elastic import ElasticBackbone
from .elastic_space import ElasticSpace, State
from .narrow import knows_neck, readers_of, select_inputs_
from .pools import Pools
from .prune import Settings, importance_of, space_of
from .subnet import family_of, subnet


def elastic_space_of(model: Any) -> ElasticSpace:
    """Return what can be searched in the backbone of a model. Without a known neck, the widths stay."""
    family, arch = family_of(model.backbone), model.backbone.settings
    names = {*ElasticSpace.below(family, arch).largest(), 'width'}
    fixed = {name.replace('hidden', 'ratio') for name in space_of(model).fixed}
    fixed |= {f'attention.{stage}' for stage in range(model.backbone.num_stages, len(arch['widths']))}  # not built
    return ElasticSpace.below(family, arch, sorted(fixed & names))


@torch.no_grad()
def sort_(task: Any, first: int) -> int:
    """Sort the channels of a task's model by importance, the most important first; its outputs stay.

    Args:
        task: Its model is changed. Where the neck is not known, the widths of stages stay in their order.
        first: Number of the first training batch.

    Returns:
        How many batches were used.
    """
    model, settings = task.model, Settings()
    pools = Pools(family_of(model.backbone), model.backbone.settings)
    with torch.enable_grad():
        orders = importance_of(task, pools, settings, first).orders
    is_free = 'hidden', 'downsample', 'merge', *(['width'] if knows_neck(model) else [])
    kept = {
        pool: orders[pool].flip(0)
        for pool, (size, _) in pools.sizes.items()
        if size.startswith(is_free) and pool in orders
    }
    readers = readers_of(model)
    model.backbone = subnet(model.backbone, pools.arch, kept)
    select_inputs_(model, readers, lambda axis: pools.indices(axis, kept))
    return settings.batches


def extracted(supernet: Any, space: ElasticSpace, state: State) -> Any:
    """Return a copy of the model with an ordinary backbone that has the weights of a state.

    Args:
        supernet: Model whose backbone is an ``ElasticBackbone``.
        space: Its networks.
        state: One of them.
    """
    elastic: ElasticBackbone = supernet.backbone
    supernet.backbone = elastic.backbone
    network = copy.deepcopy(supernet)
    supernet.backbone = elastic
    arch, readers = space.arch(state), readers_of(network)
    network.backbone = subnet(network.backbone, arch, blocks=space.sources(state))
    widths = {f'width.{i}': width for i, width in enumerate(arch['widths'])}
    select_inputs_(network, readers, lambda axis: torch.arange(widths[axis]))
    return network
