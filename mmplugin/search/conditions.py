"""What a latency table holds for: device, image size, mode and the like."""

import datetime
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmplugin.backbones import FAMILIES
from mmplugin.errors import UserError
from mmplugin.search.timing import CLOCKS

MODES = ('eager', 'fused', 'compiled', 'fused+compiled')
RUNTIMES = ('onnxruntime', 'openvino')  # modes, too: the network is exported and runs there
PROBES = 'probes'  # the mode of a table of another device
FUNCTION = 'function'  # the clock of a table for which nothing was timed
MACHINE = ('processor', 'torch')  # must be those of the machine on which a table is used
NOTES = ('date', 'rounds', 'seed')  # describe a measurement, but do not limit its use


@dataclass(frozen=True)
class Conditions:
    """What was measured, where and how.

    Args:
        family: 'v1', 'v2' or 'evit'.
        size: Height and width of the images.
        mode: 'eager', 'fused', 'compiled', 'fused+compiled', 'onnxruntime' or 'openvino', or 'probes' for times from
            another device.
        batch: Images per inference.
        threads: Threads of torch.
        device: As torch spells it.
        processor: Name of the CPU or GPU.
        torch: Version of torch.
        clock: 'wall', 'cpu', or 'function' where nothing was timed.
        rounds: Runs of each network.
        seed: Seed of networks and weights.
        date: Day of the measurement.
    """

    family: str
    size: tuple[int, int]
    mode: str
    batch: int
    threads: int
    device: str
    processor: str
    torch: str
    clock: str
    rounds: int
    seed: int
    date: str

    @classmethod
    def of_machine(
        cls,
        family: str,
        size: tuple[int, int],
        mode: str,
        batch: int,
        threads: int | None,
        device: str,
        rounds: int,
        seed: int,
        clock: Any,
    ) -> 'Conditions':
        """Return the conditions of a measurement on this machine, today."""
        return cls(
            family=family,
            size=(size[0], size[1]),
            mode=mode,
            batch=batch,
            threads=torch.get_num_threads() if threads is None else threads,
            device=device,
            processor=processor_name(device),
            torch=torch.__version__,
            clock=clock if isinstance(clock, str) else FUNCTION,
            rounds=rounds,
            seed=seed,
            date=datetime.date.today().isoformat(),
        )

    def text(self) -> str:
        """Return the conditions in one line."""
        values = asdict(self)
        values['size'] = '{}x{}'.format(*self.size)
        return ', '.join(f'{name} {value}' for name, value in values.items())


def processor_name(device: str) -> str:
    """Return the name of a CPU or GPU."""
    if device != 'cpu':
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else 'no GPU'
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def check_conditions(conditions: Conditions) -> None:
    """Refuse what cannot be measured here."""
    if conditions.family not in FAMILIES:
        raise UserError(f'there is no family {conditions.family!r}; allowed: {", ".join(FAMILIES)}')
    least = FAMILIES[conditions.family].MIN_SIZE
    if min(conditions.size) < least:
        raise UserError(f'size is {conditions.size[0]}x{conditions.size[1]}; both sides must be {least} or more')
    if conditions.mode not in (*MODES, *RUNTIMES):
        raise UserError(f'mode is {conditions.mode!r}; allowed: {", ".join((*MODES, *RUNTIMES))}')
    if conditions.mode in RUNTIMES and (conditions.device, conditions.batch) != ('cpu', 1):
        raise UserError(f'{conditions.mode} runs one image on the CPU here; omit --device and --batch')
    if conditions.clock not in (*CLOCKS, FUNCTION):
        raise UserError(f'clock is {conditions.clock!r}; allowed: {", ".join(CLOCKS)}')
    for name in ('batch', 'threads'):
        if getattr(conditions, name) < 1:
            raise UserError(f'{name} is {getattr(conditions, name)}; allowed: 1 and more')
    if conditions.rounds < 2:
        raise UserError(f'rounds is {conditions.rounds}; allowed: 2 and more, because odd and even ones are compared')
    if conditions.device != 'cpu':
        if not torch.cuda.is_available():
            raise UserError(f'device is {conditions.device!r}; torch finds no CUDA GPU. `mmplugin doctor` says why')
        if conditions.clock == 'cpu':
            raise UserError('clock cpu counts processor time, which says nothing about a GPU; use wall')


def differences(conditions: Conditions, expected: dict[str, Any]) -> list[str]:
    """Return what differs from the wanted conditions, each as 'name: table value, wanted value'."""
    found = []
    for name, wanted in expected.items():
        have = getattr(conditions, name)
        if wanted is not None and have != (tuple(wanted) if name == 'size' else wanted):
            found.append(f'{name} {_text(have)}, wanted {_text(wanted)}')
    return found


def _text(value: Any) -> str:
    return 'x'.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
