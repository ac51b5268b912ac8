"""Which channels to remove next: the least importance for each unit of cost that is saved."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .space import Sizes, Space


class Scores(Protocol):
    """What ``Importance`` provides."""

    def of_group(self, size: str, before: int, after: int) -> float:
        """Return the importance of the channels that leave when a size shrinks."""


@dataclass(frozen=True)
class Action:
    """One group of channels that was removed."""

    size: str
    before: int
    after: int
    importance: float
    gain: float  # cost saved


def plan(
    space: Space,
    sizes: Mapping[str, int],
    scores: Scores,
    cost: Callable[[Sizes], float],
    limit: float,
    by_latency: bool = True,
) -> tuple[Sizes, list[Action]]:
    """Remove groups, one after the other, until the cost is at most ``limit`` or nothing can be removed.

    Args:
        space: What may be removed.
        sizes: Sizes to start from.
        scores: Importance of groups.
        cost: Cost of a network.
        limit: Cost to reach.
        by_latency: Order by importance for each unit of cost saved, else by importance alone.

    Returns:
        The sizes, and the actions in their order. Groups that save nothing are never removed.
    """
    current, actions = dict(sizes), []
    own = cost(current)
    while own > limit:
        candidates = []
        for size, smaller in space.actions(current).items():
            gain = own - cost(smaller)
            if gain > 0:
                importance = scores.of_group(size, current[size], smaller[size])
                ratio = importance / gain if by_latency else importance
                candidates.append((ratio, size, Action(size, current[size], smaller[size], importance, gain)))
        if not candidates:
            break
        *_, action = min(candidates, key=lambda candidate: candidate[:2])
        actions.append(action)
        current[action.size] = action.after
        own = cost(current)
    return current, actions
