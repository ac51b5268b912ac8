"""The search of EfficientFormerV2 (Li et al., ICCV 2023, Section 4.2.3): one slimming action after the other.

Each step executes the action with the smallest loss of accuracy per gain of the Mobile Efficiency Score. In the lazy
form, ratios of earlier steps are kept, and only the action that comes first is evaluated again, until it stays first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

ALPHAS = {'latency_ms': 1.0, 'params': 0.5, 'macs': 0.5}  # latency and size: Section 4.2.1
EPSILON = 0.1  # share of the standard error that is added to what an action costs
Losses = Sequence[float]  # of the same images, by batch
State = dict[str, float]
Scorer = Callable[[Sequence[State]], Sequence[Losses]]


class Frontier(Protocol):
    """What ``ElasticSpace`` provides."""

    def actions(self, state: Mapping[str, float]) -> dict[str, State]:
        """Return the states that one action leads to, by the name of the action."""


def mobile_efficiency(costs: Mapping[str, float], units: Mapping[str, float], alphas: Mapping[str, float]) -> float:
    """Return the Mobile Efficiency Score (Equation 7): 100 for a network that costs the units."""
    return 100.0 * math.prod((costs[name] / units[name]) ** -alpha for name, alpha in alphas.items())


@dataclass(frozen=True)
class Drop:
    """What an action costs: the rise of the loss and its standard error over batches."""

    mean: float
    error: float
    losses: Losses

    @classmethod
    def between(cls, before: Losses, after: Losses) -> 'Drop':
        """Compare the losses of the same batches."""
        differences = [b - a for a, b in zip(before, after, strict=True)]
        mean = sum(differences) / len(differences)
        squares = sum((value - mean) ** 2 for value in differences)
        error = math.sqrt(squares / max(1, len(differences) - 1) / len(differences))
        return cls(mean, error, after)

    @property
    def value(self) -> float:
        """The rise, never negative and never zero where it is uncertain, so that noise does not choose."""
        return max(self.mean, 0.0) + EPSILON * self.error


@dataclass
class Step:
    """One executed action; a line of the trace."""

    action: str
    before: float
    after: float
    drop: float
    error: float
    gain: float  # of the Mobile Efficiency Score
    loss: float
    costs: dict[str, float]
    evaluated: dict[str, list[float]] = field(default_factory=dict)  # drop and gain of each candidate


class Greedy:
    """Slims a network until it meets all limits.

    Args:
        space: Actions.
        state: Where to start.
        score: Losses of states on the same images.
        costs: For each limit, a function from a state to what it costs.
        limits: What the network may cost. An alpha counts while its limit is not met.
        exact: Evaluate all actions in each step, as the paper does.
        floor: Share of a limit below which an action ends only if no other action ends above it.
        alphas: Exponents of the score; those of the paper by default.
        ahead: How many of the first actions are scored in one call. It changes nothing but the speed.
    """

    def __init__(
        self,
        space: Frontier,
        state: State,
        score: Scorer,
        costs: Mapping[str, Callable[[State], float]],
        limits: Mapping[str, float],
        exact: bool = False,
        floor: float = 0.0,
        alphas: Mapping[str, float] | None = None,
        ahead: int = 1,
    ):
        self.space, self.state, self.score, self.costs, self.limits = space, state, score, costs, dict(limits)
        self.exact, self.floor, self.ahead = exact, floor, ahead
        self.alphas = {**ALPHAS, **(alphas or {})}
        self.losses: Losses | None = None
        self.known: dict[str, float] = {}  # what actions cost when they were last evaluated
        self.evaluations = 0

    def cost(self, state: State) -> dict[str, float]:
        """Return what a state costs."""
        return {name: cost(state) for name, cost in self.costs.items()}

    def unmet(self) -> list[str]:
        """Return the limits that are not met."""
        return [name for name, cost in self.cost(self.state).items() if cost > self.limits[name]]

    def step(self) -> Step | None:
        """Execute one action; None if all limits are met or nothing is left that helps."""
        unmet = self.unmet()
        if not unmet:
            return None
        if self.losses is None:
            (self.losses,) = self._evaluate([self.state])
        frontier = self.space.actions(self.state)
        gains = self._gains(frontier, {name: self.alphas.get(name, 1.0) for name in unmet})
        if not gains:
            return None
        fresh = self._all(frontier, gains) if self.exact else self._lazy(frontier, gains)
        action = self._first({name: drop.value for name, drop in fresh.items()}, gains)
        drop, before = fresh[action], self.state[action]
        self.known |= {name: drop.value for name, drop in fresh.items()}
        saved = self._saved(self.state, frontier[action], unmet)
        self.state, self.losses = frontier[action], drop.losses
        if next_one := self.space.actions(self.state).get(action):  # until it is evaluated: as bad per cost
            self.known[action] *= self._saved(self.state, next_one, unmet) / saved
        return Step(
            action, before, self.state[action], drop.mean, drop.error, gains[action],
            sum(drop.losses) / len(drop.losses), self.cost(self.state),
            {name: [drop.mean, gains[name]] for name, drop in fresh.items()},
        )  # fmt: skip

    def memory(self) -> dict[str, Any]:
        """Return what a later search needs to continue as this one would."""
        return dict(state=self.state, losses=self.losses, known=dict(self.known), evaluations=self.evaluations)

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Continue from ``memory``."""
        self.state, self.losses = dict(memory['state']), memory['losses']
        self.known, self.evaluations = dict(memory['known']), memory['evaluations']

    def _gains(self, frontier: Mapping[str, State], alphas: Mapping[str, float]) -> dict[str, float]:
        """Return how much each action improves the score of what is not met yet, without those that do not."""
        own, units = self.cost(self.state), self.limits
        gains, near = {}, set()
        for name, state in frontier.items():
            costs = self.cost(state)
            gain = mobile_efficiency(costs, units, alphas) - mobile_efficiency(own, units, alphas)
            if gain > 0:
                gains[name] = gain
                if any(costs[goal] >= self.floor * units[goal] for goal in alphas):
                    near.add(name)
        return {name: gain for name, gain in gains.items() if not near or name in near}

    def _saved(self, before: State, after: State, goals: Sequence[str]) -> float:
        """Return how much cost an action saves, as a share of the limits."""
        return sum(
            self.alphas.get(goal, 1.0) * (self.costs[goal](before) - self.costs[goal](after)) / self.limits[goal]
            for goal in goals
        )

    def _all(self, frontier: Mapping[str, State], gains: Mapping[str, float]) -> dict[str, Drop]:
        names = list(gains)
        assert self.losses is not None
        losses = self._evaluate([frontier[name] for name in names])
        return {name: Drop.between(self.losses, after) for name, after in zip(names, losses, strict=True)}

    def _lazy(self, frontier: Mapping[str, State], gains: Mapping[str, float]) -> dict[str, Drop]:
        assert self.losses is not None
        new = {name: gain for name, gain in gains.items() if name not in self.known}
        fresh = self._all(frontier, new) if new else {}
        computed: dict[str, Losses] = {}
        while True:
            values = {name: fresh[name].value if name in fresh else self.known[name] for name in gains}
            first = self._first(values, gains)
            if first in fresh:
                return fresh
            if first not in computed:
                order = sorted(gains, key=lambda name: (values[name] / gains[name], -gains[name], name))
                batch = [name for name in order if name not in fresh and name not in computed][: self.ahead]
                losses = self.score([frontier[name] for name in batch])
                computed |= dict(zip(batch, losses, strict=True))
            self.evaluations += 1
            fresh[first] = Drop.between(self.losses, computed[first])

    def _evaluate(self, states: Sequence[State]) -> Sequence[Losses]:
        self.evaluations += len(states)
        return self.score(states)

    @staticmethod
    def _first(values: Mapping[str, float], gains: Mapping[str, float]) -> str:
        """Return the action with the smallest loss per gain; of equal ones that with the larger gain."""
        return min((name for name in gains if name in values), key=lambda n: (values[n] / gains[n], -gains[n], n))
