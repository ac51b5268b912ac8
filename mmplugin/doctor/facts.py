"""Facts about the environment: packages, imports, devices, and whether NMS and RoIAlign work on each device."""

import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path

from mmplugin import stack

IMPORTS = ('numpy', 'cv2', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'faster_coco_eval')
SHOWN = ('numpy', 'opencv-python', 'opencv-python-headless', 'pycocotools', 'faster-coco-eval', 'setuptools')
OPERATORS = {
    'compiled': "mmcv's compiled operators",
    'torch': "mmplugin's operators in plain PyTorch",
    'torchvision': "mmplugin's operators with torchvision's CUDA kernels",
    'none': 'none',
}


@dataclass(frozen=True)
class Gpu:
    """Name of a GPU and its architecture as torch spells it (``sm_90``)."""

    name: str
    arch: str


@dataclass(frozen=True)
class Probe:
    """Result of running one operator on one device; ``error`` is None if it works."""

    operator: str
    device: str
    error: str | None = None


@dataclass
class Facts:
    """The environment, as the rules see it.

    Args:
        python: Version of Python.
        distributions: Version of each installed distribution, by normalized name.
        errors: Error message of each import that fails, by module. Modules that are not installed are not included.
        operators: Where mmcv's operators come from, a key of ``OPERATORS``. 'none' if mmcv cannot be imported.
        cuda: CUDA version that torch is built for, None for a CPU build.
        archs: GPU architectures that torch is built for.
        gpus: GPUs that torch finds.
        driver: Whether the machine has an NVIDIA driver, even if torch finds no GPU.
        probes: Results of running the operators.
    """

    python: tuple[int, ...] = tuple(sys.version_info[:3])
    distributions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    operators: str = 'none'
    cuda: str | None = None
    archs: list[str] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    driver: bool = False
    probes: list[Probe] = field(default_factory=list)

    @property
    def stack(self) -> stack.Stack | None:
        """The stack whose mmengine is installed, OneDL if both are, None if neither is."""
        for candidate in (stack.ONEDL, stack.STOCK):
            if candidate.pins['mmengine'][0] in self.distributions:
                return candidate
        return None

    def table(self) -> list[tuple[str, str]]:
        """Return the rows of the report as title and text."""
        have = self.distributions
        rows = [
            ('mmplugin', f'{have.get("mmplugin", "not installed, run from a clone")}   {Path(__file__).parents[1]}'),
            ('python', f'{".".join(map(str, self.python))}   {sys.executable}   {platform.platform(terse=True)}'),
            ('torch', self._torch_line()),
            ('stack', self._stack_line()),
            ('others', ', '.join(f'{name} {have[name]}' for name in SHOWN if name in have)),
            ('operators', OPERATORS[self.operators]),
            ('devices', ', '.join(['cpu', *(f'{gpu.name} ({gpu.arch})' for gpu in self.gpus)])),
        ]
        if self.gpus:
            rows.append(('built for', ' '.join(self.archs)))
        for device in dict.fromkeys(probe.device for probe in self.probes):
            tried = [f'{p.operator} {"failed" if p.error else "ok"}' for p in self.probes if p.device == device]
            rows.append((f'on {device}', ', '.join(tried)))
        return rows

    def _torch_line(self) -> str:
        supported = f'tested with {stack.TESTED_TORCH}, {stack.LOWEST_TORCH} or later is required'
        if 'torch' not in self.distributions:
            return f'not installed ({supported})'
        return f'{self.distributions["torch"]}   CUDA {self.cuda or "none"}   ({supported})'

    def _stack_line(self) -> str:
        found = self.stack
        if found is None:
            return 'none, mmengine is not installed'
        parts = [f'{name} {self.distributions[name]}' for name, _ in found.pins.values() if name in self.distributions]
        return f'{found.title}: {", ".join(parts)}'


def normalize(name: str) -> str:
    """Normalize the name of a distribution as PyPI does: ``faster_coco_eval`` becomes ``faster-coco-eval``."""
    return re.sub(r'[-_.]+', '-', name).lower()


def gather() -> Facts:
    """Gather the facts about this environment. Imports every library, without showing its warnings."""
    distributions = {normalize(d.metadata['Name']): d.version for d in metadata.distributions() if d.metadata['Name']}
    driver = any(map(os.path.exists, ('/dev/nvidia0', '/dev/dxg', '/proc/driver/nvidia')))
    facts = Facts(distributions=distributions, driver=driver)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for module in IMPORTS:
            _try_import(module, facts)
        if 'torchvision' in distributions:
            _try_torchvision(facts)
        if stack.IMPORT_ERROR is not None:
            facts.errors['mmplugin'] = str(stack.IMPORT_ERROR)
        if 'torch' in sys.modules and 'torch' not in facts.errors:
            _find_gpus(facts)
            if 'mmcv' in sys.modules and 'mmcv' not in facts.errors:
                _try_operators(facts)
    return facts


def _try_import(module: str, facts: Facts) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is installed, but one of its own imports is not
            facts.errors[module] = _one_line(error)
    except Exception as error:  # a broken binary may raise anything
        facts.errors[module] = _one_line(error)


def _try_torchvision(facts: Facts) -> None:
    # In a separate process, because a failed import leaves partial registrations in torch.
    run = subprocess.run([sys.executable, '-c', 'import torchvision'], capture_output=True, text=True, check=False)
    if run.returncode:
        facts.errors['torchvision'] = (run.stderr.strip().splitlines() or ['the process crashed'])[-1][:160]


def _find_gpus(facts: Facts) -> None:
    import torch

    facts.cuda = torch.version.cuda
    if not torch.cuda.is_available():
        return
    facts.archs = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        facts.gpus.append(Gpu(torch.cuda.get_device_name(index), f'sm_{major}{minor}'))


def _try_operators(facts: Facts) -> None:
    try:
        import_module('mmcv.ops')
        facts.operators = import_module('mmplugin.ops').backend()
    except Exception as error:  # mmcv has no operators and mmplugin could not replace them
        facts.errors['mmcv.ops'] = _one_line(error)
        return
    for device in ('cpu', *(f'cuda:{index}' for index in range(len(facts.gpus)))):
        for operator, run in {'NMS': _run_nms, 'RoIAlign': _run_roi_align}.items():
            facts.probes.append(Probe(operator, device, _error_of(run, device)))


def _error_of(run: Callable[[str], bool], device: str) -> str | None:
    try:
        return None if run(device) else 'wrong result'
    except Exception as error:  # every error is reported
        return _one_line(error)


def _run_nms(device: str) -> bool:
    import torch
    from mmcv.ops import nms

    # The second box overlaps the first by 80 %, the third not at all.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)
    return kept.tolist() == [0, 2]


def _run_roi_align(device: str) -> bool:
    import torch
    from mmcv.ops import roi_align

    # The input holds its own x coordinate, so each bin returns the x of its center, minus the half pixel of `aligned`.
    image = torch.arange(8.0, device=device).expand(1, 1, 8, 8).contiguous()
    box = torch.tensor([[0.0, 2, 2, 6, 6]], device=device)
    out = roi_align(image, box, (2, 2), 1.0, 0, 'avg', True)
    return torch.allclose(out.flatten().cpu(), torch.tensor([2.5, 4.5, 2.5, 4.5]))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else "no message"}'[:160]
