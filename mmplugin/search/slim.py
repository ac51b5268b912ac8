"""``mmplugin search --method slim``: latency-driven slimming of EfficientFormer (Li et al., NeurIPS 2022, Section 4.2).

Each block of the supernet is a mixture of itself and the identity, in the last stage of a pool block, an attention
block and the identity, with weights that are learned. A block matters as much as it weighs against the identity. The
network is slimmed by three actions: removing the least important block, removing 16 channels from the least important
stage, and replacing the first attention block by a pool block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmplugin.convert import checkpoint_io
from mmplugin.errors import UserError

from .elastic import ElasticBackbone
from .elastic_space import ElasticSpace, State
from .joint import SAVE, SUPERNET, JointRun
from .latency import kendall_tau
from .mixture import LAST, Mixture, importances, mixed_, unmixed
from .narrow import knows_neck, readers_of, select_inputs_
from .pools import Pools
from .prune import Settings, importance_of
from .subnet import family_of, subnet
from .supernet import elastic_space_of

STEPS = 200
WIDTH_STEP = 16  # channels, as in the paper
WEAK_TAU = 0.3  # below, importance says little about the loss


@dataclass(frozen=True)
class SlimSpace(ElasticSpace):
    """What the three actions reach. In the last stage, the first blocks are pool blocks, the others have attention.

    Args:
        importance: Of each block, as ``block.STAGE.BLOCK``.
        attention: Blocks with attention in the network of the config.
    """

    importance: Mapping[str, float] = field(default_factory=dict)
    attention: int = 0

    @classmethod
    def of(cls, space: ElasticSpace) -> 'SlimSpace':
        """Return the space below the network of another space, in which all blocks of the last stage have attention."""
        start = dict(space.start, attention_blocks=space.start['depths'][LAST])
        attention = space.start['attention_blocks']
        return cls(space.family, start, space.fixed, space.ratio_step, space.least_ratio, attention=attention)

    def largest(self) -> State:
        """Return the state of the largest network."""
        return super().largest() | {f'attention.{LAST}': self.start['depths'][LAST]}

    def levels(self, size: str) -> list[float]:
        """Return the values of a width, in steps of 16; expansions stay."""
        most, *others = super().levels(size)
        return [most, *(n for n in others if n % WIDTH_STEP == 0)] if size.startswith('width') else [most]

    def sources(self, state: Mapping[str, float]) -> list[list[int]]:
        """Return the blocks of the supernet that run: in its last stage, attention blocks follow all pool blocks."""
        *others, last = self.blocks(state)
        depth = self.start['depths'][LAST]
        with_attention = depth - state[f'attention.{LAST}']
        return [*others, [j if j < with_attention else depth + j for j in last]]

    def actions(self, state: Mapping[str, float]) -> dict[str, State]:
        """Return at most three actions: the least important block, the least important stage, the first attention."""
        found = super().actions(state)
        blocks = [size for size in found if size.startswith('block')]
        widths = [size for size in found if size.startswith('width')]
        chosen = [size for size in found if size.startswith('attention')]
        if blocks:
            chosen.append(min(blocks, key=lambda size: self.importance[size]))
        if widths:
            chosen.append(min(widths, key=lambda size: self.of_stage(state, int(size.split('.')[1]))))
        return {size: found[size] for size in chosen}

    def uniform(self, share: float) -> State:
        """Return the state of the network of the config, whose widths and depths are this share of its own."""
        return super().uniform(share) | {f'attention.{LAST}': self.attention}

    def of_stage(self, state: Mapping[str, float], stage: int) -> float:
        """Return the sum of the importance of the blocks that a stage still has."""
        return sum(self.importance[f'block.{stage}.{j}'] for j in self.blocks(state)[stage])


class SlimRun(JointRun):
    """Latency-driven slimming."""

    method = 'slim'
    space_: SlimSpace

    def _check_model(self) -> None:
        super()._check_model()
        family = family_of(self.task.model.backbone)
        if family != 'v1':
            raise UserError(f'--method slim is the method of v1, and this config is of {family}; use joint or prune')
        if self.task.model.backbone.num_stages <= LAST:
            raise UserError('--method slim needs all four stages: remove out_indices from model.backbone')

    def _make_space(self) -> SlimSpace:
        return SlimSpace.of(elastic_space_of(self.task.model))

    @property
    def is_exact(self) -> bool:
        """Whether all actions are evaluated in each step: there are three."""
        return True

    def _train_supernet_(self, state: dict[str, Any] | None) -> None:
        task, path = self.task, self.folder / SUPERNET
        steps = STEPS if self.options.steps is None else self.options.steps
        mixed_(task.model.backbone)
        mixture = Mixture(task, steps, self._take(steps))
        if state and path.is_file():
            mixture.restore(dict(checkpoint_io.read(path)))
            self.say(f'the supernet has {mixture.done} of {steps} steps')
        for loss in mixture.train():
            if mixture.done % SAVE == 0 or mixture.done == steps:
                self._save_supernet(mixture.state())
                self.say(f'supernet: step {mixture.done} of {steps}, loss {loss:.3f}')
        found = importances(task.model.backbone)
        self.space_ = replace(self.space_, importance=found)
        task.model.backbone = unmixed(task.model.backbone)
        self._sort_widths_()
        task.model.backbone = ElasticBackbone(task.model.backbone)

    def _after_supernet(self) -> None:
        """Compare the importance of blocks with what the loss says when each is removed."""
        largest = self.space_.largest()
        names = [size for size in self.space_.importance if size in ElasticSpace.actions(self.space_, largest)]
        if len(names) < 2:
            return
        states = [largest, *({**largest, name: 0} for name in names)]
        whole, *others = (sum(losses) / len(losses) for losses in self.evaluator(states))
        tau = kendall_tau([self.space_.importance[name] for name in names], [loss - whole for loss in others])
        note = (
            '' if tau >= WEAK_TAU else ': importance says little about the loss here; use --method joint, more --steps'
        )
        self.say(f'rank correlation of importance and loss over {len(names)} blocks: {tau:.2f}{note}')

    def _sort_widths_(self) -> None:
        """Sort channels by the importance that they have in the largest network, with attention in the last stage."""
        task, doubled, largest = self.task, self.task.model.backbone, self.space_.largest()
        pools, depth = Pools('v1', doubled.settings), self.space_.start['depths'][LAST]
        task.model.backbone = subnet(doubled, self.space_.arch(largest), blocks=self.space_.sources(largest))
        own, settings = Pools('v1', task.model.backbone.settings), Settings()
        orders = importance_of(task, own, settings, self._take(settings.batches)).orders
        kept = {}
        for pool, (size, _) in own.sizes.items():
            kind, stage, *rest = pool.split('.')
            if kind == 'hidden':
                name = f'hidden.{LAST}.{depth + int(rest[0])}' if int(stage) == LAST else pool
                kept[name] = orders[pool].flip(0)
            elif size.startswith('width') and knows_neck(task.model):
                kept[pool] = orders[pool].flip(0)
        readers = readers_of(task.model)
        task.model.backbone = subnet(doubled, doubled.settings, kept)
        select_inputs_(task.model, readers, lambda axis: pools.indices(axis, kept))
