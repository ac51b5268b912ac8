"""The supernet of EfficientFormer (Li et al., NeurIPS 2022, Section 4.2): each block is a mixture of paths."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from mmplugin.backbones import DenseBackbone, EfficientFormer
from mmplugin.errors import UserError
from mmplugin.hooks.layer_scale import FROM_SCRATCH, set_layer_scales_

from .subnet import arguments_of
from .task import Task, rate_factor

ALPHA_RATE, TAU = 3e-3, 1.0
LAST = 3  # the stage with attention
NOISES = ('uniform', 'gumbel')


class MetaPath(nn.Module):
    """A mixture of blocks and the identity (Equations 7 and 8).

    Blocks contain their residual connection and the weights sum to 1, so the mixture is ``x`` plus the weighted
    changes of the blocks.

    Args:
        blocks: A pool block, and in the last stage an attention block.
        noise: 'uniform' as in the paper, or 'gumbel'; it is added in training.
    """

    def __init__(self, blocks: list[nn.Module], noise: str = 'uniform'):
        super().__init__()
        if noise not in NOISES:
            raise UserError(f'noise is {noise!r}; allowed: {", ".join(NOISES)}')
        self.blocks, self.noise = nn.ModuleList(blocks), noise
        self.alpha = nn.Parameter(torch.zeros(len(blocks) + 1))  # the identity is last

    def weights(self) -> Tensor:
        """Return the weights of the blocks and of the identity, with noise in training."""
        alpha: Tensor = self.alpha
        if self.training:
            noise = torch.rand_like(alpha)
            alpha = alpha + (noise if self.noise == 'uniform' else -torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7))))
        return (alpha / TAU).softmax(0)

    def importance(self) -> float:
        """Return the weight of the blocks divided by that of the identity; positive and finite for every alpha."""
        alpha = self.alpha.detach().double() / TAU
        return math.exp(min(float(alpha[:-1].logsumexp(0) - alpha[-1]), 700.0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        weights = self.weights()
        changes = [weight * (block(x) - x) for weight, block in zip(weights, self.blocks, strict=False)]
        return x + sum(changes)


def mixed_(backbone: Any, noise: str = 'uniform') -> None:
    """Replace each block by a ``MetaPath``; blocks that the last stage lacks are new."""
    set_layer_scales_(backbone, FROM_SCRATCH)
    arch = backbone.explicit(backbone.settings)
    depth = arch['depths'][LAST]
    template: dict[int, Any] = {
        count: EfficientFormer(dict(arch, attention_blocks=count), **arguments_of(backbone)) for count in (0, depth)
    }
    first_parameter = next(backbone.parameters())
    for i, stage in enumerate(backbone.stages):
        for j, block in enumerate(stage.blocks):
            paths = [block]
            if i == LAST:
                is_pool = j < depth - arch['attention_blocks']
                other = template[depth if is_pool else 0].stages[i].blocks[j]
                paths = [block, other] if is_pool else [other, block]
            stage.blocks[j] = MetaPath(paths, noise).to(first_parameter.device)
    set_layer_scales_(backbone, FROM_SCRATCH)
    for name, parameter in backbone.named_parameters():
        if 'layer_scale' in name:
            parameter.requires_grad_(False)  # it would share its role with alpha


def importances(backbone: Any) -> dict[str, float]:
    """Return the importance of each block of a mixed backbone."""
    return {
        f'block.{i}.{j}': path.importance()
        for i, stage in enumerate(backbone.stages)
        for j, path in enumerate(stage.blocks)
    }


def unmixed(backbone: Any) -> DenseBackbone:
    """Return an ordinary backbone with all paths: in its last stage, attention blocks follow the pool blocks."""
    arch = backbone.explicit(backbone.settings)
    depth = arch['depths'][LAST]
    arch = dict(
        arch, depths=(*arch['depths'][:LAST], 2 * depth), attention_blocks=depth,
        hidden=(*arch['hidden'][:LAST], 2 * arch['hidden'][LAST]),
    )  # fmt: skip
    result = EfficientFormer(arch, **arguments_of(backbone)).to(next(backbone.parameters()).device)
    result.stem.load_state_dict(backbone.stem.state_dict())
    result.out_norms.load_state_dict(backbone.out_norms.state_dict())
    stages: Any = zip(result.stages, backbone.stages, strict=True)
    for stage, mixed in stages:
        stage.downsample.load_state_dict(mixed.downsample.state_dict())
        count = max(len(path.blocks) for path in mixed.blocks)
        paths = [path.blocks[n] for n in range(count) for path in mixed.blocks]
        for block, path in zip(stage.blocks, paths, strict=True):
            block.load_state_dict(path.state_dict())
    return result


class Mixture:
    """Trains weights and mixture together, on the same batches.

    Args:
        task: A model whose backbone is mixed, and its data. The model is changed.
        steps: Number of steps.
        first: Number of the first training batch.
    """

    def __init__(self, task: Task, steps: int, first: int):
        self.task, self.steps, self.first, self.done = task, steps, first, 0
        model = task.model
        alphas = [path.alpha for path in model.backbone.modules() if isinstance(path, MetaPath)]
        for alpha in alphas:
            alpha.requires_grad_(False)  # not part of the optimizer of the config
        self.optimizer: Any = build_optim_wrapper(model, copy.deepcopy(task.cfg.optim_wrapper))
        own = {id(alpha) for alpha in alphas}
        for group in self.optimizer.param_groups:
            group['params'] = [parameter for parameter in group['params'] if id(parameter) not in own]
        for alpha in alphas:
            alpha.requires_grad_(True)
        self.alphas = torch.optim.Adam(alphas, lr=ALPHA_RATE)
        self.rates = [group['lr'] for group in self.optimizer.param_groups]

    def train(self) -> Iterator[float]:
        """Run the steps that are left, and yield the loss of each."""
        self.task.model.train()
        for batch in self.task.batches(self.first + self.done, self.steps - self.done):
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group['lr'] = rate * rate_factor(self.done, self.steps)
            loss = self.task.loss(batch, self.first + self.done)
            if not math.isfinite(value := float(loss.detach())):
                raise UserError(
                    f'the loss is {value} in training step {self.done + 1} of {self.steps} of the supernet; use a '
                    f'smaller learning rate: --cfg-options optim_wrapper.optimizer.lr={self.rates[0] / 3:.1g}'
                )
            self.alphas.zero_grad()
            self.optimizer.update_params(loss)
            self.alphas.step()
            self.done += 1
            yield value

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs to continue."""
        optimizers = dict(optimizer=self.optimizer.state_dict(), alphas=self.alphas.state_dict())
        return dict(model=self.task.model.state_dict(), done=self.done, **optimizers)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.task.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.alphas.load_state_dict(state['alphas'])
        self.done = state['done']
