"""LatencyTable: the latency of any network of a family on one device, predicted from measurements on that device."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmplugin.errors import UserError
from mmplugin.search.conditions import PROBES, RUNTIMES, Conditions, check_conditions
from mmplugin.search.fitted import FittedModel, InSituModel
from mmplugin.search.networks import balanced_archs, random_archs
from mmplugin.search.parts import Part, explicit_arch, parts_of
from mmplugin.search.timing import ClockedNetwork, Network, PartClock, Progress, run_in_turn, threads_set

CHECKS = 12  # networks; the chance level of Kendall's tau has a standard deviation of 0.22 with so many
TAU, QUIET, TAU_LOSS, MEDIAN_ERROR = 0.9, 0.95, 0.05, 0.05
SECONDS = 0.05  # network times that are all below so many milliseconds must be seconds


class CheckRow(NamedTuple):
    """A network that is not in the table, and what it took: medians over all, odd and even rounds, in ms."""

    arch: dict[str, Any]
    ms: float
    odd_ms: float
    even_ms: float


@dataclass(frozen=True)
class Check:
    """How well a table predicts networks that it does not contain.

    Args:
        tau: Kendall's tau between predicted and measured times.
        ceiling: Kendall's tau between the odd and the even rounds of the measurement.
        median_error: Median of ``|predicted / measured - 1|``.
        worst_error: Largest of them.
        networks: Number of networks.
    """

    tau: float
    ceiling: float
    median_error: float
    worst_error: float
    networks: int

    @property
    def wanted_tau(self) -> float:
        """The tau that is promised: 0.9 where the measurement repeats itself, else almost what repeating it gives."""
        return TAU if self.ceiling >= QUIET else self.ceiling - TAU_LOSS

    @property
    def passed(self) -> bool:
        """Whether the promise is kept."""
        return self.tau >= self.wanted_tau and self.median_error <= MEDIAN_ERROR

    def __str__(self) -> str:
        return (
            f'tau {self.tau:.2f}, ceiling {self.ceiling:.2f}, error {self.median_error:.1%} (median) and '
            f'{self.worst_error:.1%} (largest) on {self.networks} networks that are not in the table'
        )


class LatencyTable:
    """Latency of the networks of one family on one device.

    Build one with ``measure``, ``load`` or ``mmplugin.search.probes.read_probes``.

    Args:
        conditions: What was measured, where and how.
        model: Milliseconds of a part.
        checks: Networks that ``model`` has not seen.
    """

    def __init__(self, conditions: Conditions, model: InSituModel | FittedModel, checks: Sequence[CheckRow]):
        self.conditions, self.model, self.checks = conditions, model, list(checks)
        self._again: Callable[[int], LatencyTable] | None = None

    @classmethod
    def measure(
        cls,
        family: str,
        size: tuple[int, int] = (512, 512),
        mode: str = 'fused',
        *,
        around: str | dict | None = None,
        batch: int = 1,
        threads: int | None = None,
        device: str = 'cpu',
        rounds: int = 12,
        seed: int = 0,
        clock: str | PartClock = 'wall',
        progress: Progress | None = None,
    ) -> 'LatencyTable':
        """Measure a table on this machine.

        27 networks with random weights run in turn, and each of their parts is timed where it runs. In the same rounds,
        12 other networks are timed as a whole, for ``check``.

        Args:
            family: 'v1', 'v2' or 'evit'.
            size: Height and width of the images.
            mode: 'eager' or 'fused'. In the other modes ('compiled', 'onnxruntime', 'openvino'), parts cannot be timed:
                the times of whole networks are fitted.
            around: Arch whose sub-networks will be asked for. None stands for the whole family.
            batch: Images per inference.
            threads: Threads of torch. None means torch's own choice.
            device: 'cpu', 'cuda', 'cuda:1', ...
            rounds: Runs of each network. A table that fails its check is measured once more, with twice as many.
            seed: Seed of the networks of the check, of the order in which networks run, and of the weights.
            clock: 'wall', 'cpu' (processor time, for a busy CPU), or a function from a part to milliseconds. With a
                function, no network is built.
            progress: Called after each run with the number of runs so far and in total.
        """
        conditions = Conditions.of_machine(family, size, mode, batch, threads, device, rounds, seed, clock)
        check_conditions(conditions)
        explicit = explicit_arch(family, around) if around is not None else None
        table = _measure(cls, conditions, explicit, clock, progress)
        table._again = lambda rounds: _measure(cls, replace(conditions, rounds=rounds), explicit, clock, progress)
        return table

    def predict(self, arch: str | dict) -> float:
        """Return the milliseconds of a backbone."""
        return sum(self.model(part) for part in parts_of(self.conditions.family, arch))

    def check(self) -> Check:
        """Check that the table keeps its promise.

        If the promise is missed, a table that was measured in this process is measured once more, with twice the
        rounds.

        Raises:
            UserError: If the promise is missed still: tau of 0.9 and more if the ceiling is at least 0.95, else at
                least the ceiling minus 0.05; median error of at most 5 %.
        """
        found = self.compare()
        if not found.passed and self._again:
            better = self._again(2 * self.conditions.rounds)
            self.conditions, self.model, self.checks, self._again = better.conditions, better.model, better.checks, None
            found = self.compare()
        if not found.passed:
            raise UserError(f'{found}: {self._reason(found)}')
        return found

    def compare(self) -> Check:
        """Compare predictions with the measured times of networks that are not in the table."""
        if len(self.checks) < CHECKS:
            raise UserError(
                f'the latency table has {len(self.checks)} networks to check it with; {CHECKS} are the fewest with '
                'which a rank correlation means anything. Measure a new table'
            )
        predicted = [self.predict(row.arch) for row in self.checks]
        errors = [abs(a / row.ms - 1) for a, row in zip(predicted, self.checks, strict=True)]
        return Check(
            tau=kendall_tau(predicted, [row.ms for row in self.checks]),
            ceiling=kendall_tau([row.odd_ms for row in self.checks], [row.even_ms for row in self.checks]),
            median_error=statistics.median(errors),
            worst_error=max(errors),
            networks=len(self.checks),
        )

    def _reason(self, found: Check) -> str:
        if self.conditions.mode == PROBES:
            return (
                f'the promise is a tau of {found.wanted_tau:.2f} and a median error of {MEDIAN_ERROR:.0%}; time each '
                'file with more runs, and a second time for the column ms_again, which shows how well times repeat'
            )
        if found.ceiling < QUIET:
            return (
                'the machine is too busy to tell these networks apart; run nothing else, use --clock cpu, or more '
                f'--rounds than {self.conditions.rounds}'
            )
        return (
            f'the promise is a tau of {found.wanted_tau:.2f} and a median error of {MEDIAN_ERROR:.0%}; use more '
            f'--rounds than {self.conditions.rounds}, or a table around the network that the search starts from'
        )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON. All times are in milliseconds."""
        from mmplugin.search.table_io import write_table

        write_table(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, **expected: Any) -> 'LatencyTable':
        """Read a table that ``save`` wrote, or ``probes.csv`` with its times filled in.

        Args:
            path: File.
            expected: Fields of ``Conditions`` and the values that they must have. The processor and the version of
                torch must be those of this machine, unless the times come from ``probes.csv``.

        Raises:
            UserError: If the table is of another machine or other conditions, or is damaged.
        """
        from mmplugin.search.table_io import read_table

        return read_table(cls, Path(path), expected)


def _measure(
    cls: type[LatencyTable],
    conditions: Conditions,
    around: dict | None,
    clock: str | PartClock,
    progress: Progress | None,
) -> LatencyTable:
    if 'compiled' in conditions.mode or conditions.mode in RUNTIMES:
        from mmplugin.search.probes import measure_whole

        return measure_whole(conditions, around, progress)
    family = conditions.family
    archs = balanced_archs(family, around)
    check_archs = random_archs(family, around, CHECKS, conditions.seed)
    with threads_set(conditions.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(conditions.seed)
        networks = [_network(conditions, arch, clock, by_part=True) for arch in archs]
        networks += [_network(conditions, arch, clock, by_part=False) for arch in check_archs]
        times = run_in_turn(networks, conditions.rounds, conditions.seed, progress)
    samples: dict[Part, list[float]] = {}
    for arch, rounds in zip(archs, times, strict=False):
        for part, of_part in zip(parts_of(family, arch), zip(*rounds, strict=True), strict=True):
            samples.setdefault(part, []).extend(of_part)
    entries = {part: statistics.median(of_part) for part, of_part in samples.items()}
    checks = [
        check_row(arch, [whole for (whole,) in rounds])
        for arch, rounds in zip(check_archs, times[len(archs) :], strict=True)
    ]
    return cls(conditions, InSituModel(entries), checks)


def _network(conditions: Conditions, arch: dict, clock: str | PartClock, by_part: bool) -> Network | ClockedNetwork:
    if not isinstance(clock, str):
        return ClockedNetwork(conditions.family, arch, clock, by_part)
    x = torch.randn(conditions.batch, 3, *conditions.size).to(conditions.device)
    return Network(conditions.family, arch, x, conditions.mode, clock, by_part)


def check_row(arch: dict, times: Sequence[float]) -> CheckRow:
    """Return the row of a network that was timed in rounds, in ms."""
    return CheckRow(arch, *(statistics.median(of_rounds) for of_rounds in (times, times[::2], times[1::2])))


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's tau: pairs in the same order minus pairs in the opposite order, divided by all pairs."""
    pairs = [(i, j) for j in range(len(a)) for i in range(j)]
    signs = [_sign(a[i] - a[j]) * _sign(b[i] - b[j]) for i, j in pairs]
    return sum(signs) / len(pairs)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def refuse_seconds(times: Mapping[str, float] | Sequence[float], source: str) -> None:
    """Refuse times of whole networks that must be seconds."""
    values = list(times.values()) if isinstance(times, Mapping) else list(times)
    if values and max(values) < SECONDS:
        raise UserError(
            f'{source}: all networks take less than {SECONDS} ms, the largest {max(values):g}. Times are in '
            'milliseconds; these look like seconds: multiply them by 1000'
        )
