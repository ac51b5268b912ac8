"""What a network may cost, and what networks cost."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from mmplugin.errors import UserError

MIB = 2**20
CLOSE = 0.05  # share of the target by which the measured latency may differ


@dataclass
class Figures:
    """What one network costs: the whole model as it is deployed, or one part of it."""

    latency_ms: float  # of one batch
    params: float
    macs: float  # multiply-adds of one image
    memory: float  # bytes


@dataclass(frozen=True)
class Quantity:
    """One of the figures that a budget limits: its option, its units and its name in messages."""

    option: str
    units: Mapping[str, float]  # the first one is used for output
    example: str
    name: str

    def parse(self, text: str) -> tuple[float, bool]:
        """Return the value, and whether it is a share of the start.

        Raises:
            ValueError: If the text is neither.
        """
        match = re.fullmatch(r'(\d+\.?\d*|\.\d+)\s*(%|[a-zA-Z]+)', text.strip())
        unit = match[2] if match else ''
        value = float(match[1]) if match else 0.0
        if unit == '%' and 0 < value <= 100:
            return value / 100, True
        if unit not in self.units or not 0 < value < math.inf:
            raise ValueError(f'{text}: allowed are {self.example} (of the start)')
        return value * self.units[unit], False

    def format(self, value: float) -> str:
        """Return a value with its unit."""
        unit, factor = next(iter(self.units.items()))
        return f'{value / factor:.3g} {unit}'


QUANTITIES = {
    'latency_ms': Quantity('--target-latency', {'ms': 1.0}, '20ms or 60%', 'latency'),
    'params': Quantity('--target-params', {'M': 1e6, 'K': 1e3}, '6M or 80%', 'parameters'),
    'macs': Quantity('--target-macs', {'G': 1e9, 'M': 1e6}, '5G or 80%', 'MACs'),
    'memory': Quantity('--target-memory', {'MiB': MIB, 'GiB': 1024 * MIB}, '300MiB or 80%', 'memory'),
}


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost; None is no limit.

    Args:
        latency_ms: Milliseconds of one batch.
        params: Parameters as deployed: norms and layer scales folded.
        macs: Multiply-adds of one image.
        memory: Bytes.
        shares: Limits by name that are shares of the start, which ``of_start`` replaces by numbers.
    """

    latency_ms: float | None = None
    params: float | None = None
    macs: float | None = None
    memory: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_options(
        cls,
        latency: str | None = None,
        params: str | None = None,
        macs: str | None = None,
        memory: str | None = None,
        start: Figures | None = None,
    ) -> 'Budget':
        """Return the budget that the options describe, such as ``latency='20ms'`` or ``latency='60%'``.

        Args:
            latency: Value of ``--target-latency``.
            params: Value of ``--target-params``.
            macs: Value of ``--target-macs``.
            memory: Value of ``--target-memory``.
            start: Figures of the start. Without them, shares wait for ``of_start``.
        """
        limits: dict[str, float] = {}
        shares: dict[str, float] = {}
        for name, text in zip(QUANTITIES, (latency, params, macs, memory), strict=True):
            if text is not None:
                try:
                    value, is_share = QUANTITIES[name].parse(text)
                except ValueError as error:
                    raise UserError(f'{QUANTITIES[name].option} {error}') from error
                (shares if is_share else limits)[name] = value
        if not limits and not shares:
            *options, last = (quantity.option for quantity in QUANTITIES.values())
            raise UserError(f'there is no budget: give at least one of {", ".join(options)} and {last}')
        budget = cls(**limits, shares=shares)
        return budget if start is None else budget.of_start(start)

    def of_start(self, start: Figures) -> 'Budget':
        """Return the budget with shares replaced by numbers."""
        limits = {name: limit for name in QUANTITIES if (limit := getattr(self, name)) is not None}
        return Budget(**limits, **{name: share * getattr(start, name) for name, share in self.shares.items()})

    def limits(self) -> dict[str, float]:
        """Return the limits by name."""
        if self.shares:
            raise ValueError('this budget has shares of the start: call of_start first')
        return {name: limit for name, limit in asdict(self).items() if name != 'shares' and limit is not None}

    def unmet(self, figures: Figures) -> list[str]:
        """Return the names of the limits that a network exceeds."""
        return [name for name, limit in self.limits().items() if getattr(figures, name) > limit]

    def __str__(self) -> str:
        numbers = [f'{QUANTITIES[name].name} {QUANTITIES[name].format(value)}' for name, value in self._numbers()]
        shares = [f'{QUANTITIES[name].name} {share:.0%} of the start' for name, share in self.shares.items()]
        return ', '.join([*numbers, *shares])

    def _numbers(self) -> list[tuple[str, float]]:
        return [(name, value) for name in QUANTITIES if (value := getattr(self, name)) is not None]
