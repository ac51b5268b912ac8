"""What the doctor sees: distributions, imports, devices, and a tiny run of NMS and RoIAlign on each device."""

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
    'compiled': "mmcv's, compiled",
    'torch': "mmplugin's, in plain PyTorch",
    'torchvision': "mmplugin's, on torchvision's kernels",
    'none': 'none',
}


@dataclass(frozen=True)
class Gpu:
    """One GPU: what it is called, and its architecture as torch names it (``sm_90``)."""

    name: str
    arch: str


@dataclass(frozen=True)
class Probe:
    """One operator tried on one device: its error, or None."""

    operator: str
    device: str
    error: str | None = None


@dataclass
class Facts:
    """The environment as far as the rules need it.

    Attributes:
        python: The version, as numbers.
        distributions: Version by normalised distribution name.
        errors: Why an import failed, by module; modules that are not installed or import well are not in it.
        operators: Where mmcv's operators come from, a key of ``OPERATORS``; 'none' also where mmcv itself fails.
        cuda: The CUDA version torch is built for, None for a CPU build.
        archs: The architectures torch is built for.
        gpus: The GPUs torch sees.
        driver: Whether an NVIDIA driver is on the machine, whatever torch sees.
        probes: The operators tried.
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
        """The stack whose mmengine is installed, None without one; OneDL's where both are."""
        for candidate in (stack.ONEDL, stack.STOCK):
            if candidate.pins['mmengine'][0] in self.distributions:
                return candidate
        return None

    def table(self) -> list[tuple[str, str]]:
        """Lay the facts out as titled lines."""
        have = self.distributions
        rows = [
            ('mmplugin', f'{have.get("mmplugin", "a clone, not installed")}   {Path(__file__).parents[1]}'),
            ('python', f'{".".join(map(str, self.python))}   {sys.executable}   {platform.platform(terse=True)}'),
            ('torch', f'{have["torch"]}   CUDA {self.cuda or "none"}' if 'torch' in have else 'not installed'),
            ('stack', self._stack_line()),
            ('others', ', '.join(f'{name} {have[name]}' for name in SHOWN if name in have)),
            ('operators', OPERATORS[self.operators]),
            ('devices', ', '.join(['cpu', *(f'{gpu.name} ({gpu.arch})' for gpu in self.gpus)])),
        ]
        if self.gpus:
            rows.append(('torch has', ' '.join(self.archs)))
        for device in dict.fromkeys(probe.device for probe in self.probes):
            tried = [f'{p.operator} {"failed" if p.error else "ok"}' for p in self.probes if p.device == device]
            rows.append((f'on {device}', ', '.join(tried)))
        return rows

    def _stack_line(self) -> str:
        found = self.stack
        if found is None:
            return 'none: no mmengine'
        parts = [f'{name} {self.distributions[name]}' for name, _ in found.pins.values() if name in self.distributions]
        return f'{found.title}: {", ".join(parts)}'


def normalise(name: str) -> str:
    """Spell a distribution's name as the index does: ``faster_coco_eval`` -> ``faster-coco-eval``."""
    return re.sub(r'[-_.]+', '-', name).lower()


def gather() -> Facts:
    """Look at this environment. Slow libraries are imported here; whatever they print is kept off the screen."""
    distributions = {normalise(d.metadata['Name']): d.version for d in metadata.distributions() if d.metadata['Name']}
    driver = any(map(os.path.exists, ('/dev/nvidia0', '/dev/dxg', '/proc/driver/nvidia')))
    facts = Facts(distributions=distributions, driver=driver)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for module in IMPORTS:
            _note_import(module, facts)
        if 'torchvision' in distributions:
            _note_torchvision(facts)
        if stack.IMPORT_ERROR is not None:
            facts.errors['mmplugin'] = str(stack.IMPORT_ERROR)
        if 'torch' in sys.modules and 'torch' not in facts.errors:
            _look_at_devices(facts)
            if 'mmcv' in sys.modules and 'mmcv' not in facts.errors:
                _try_operators(facts)
    return facts


def _note_import(module: str, facts: Facts) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there and misses something itself
            facts.errors[module] = _one_line(error)
    except Exception as error:  # a broken binary may raise anything
        facts.errors[module] = _one_line(error)


def _note_torchvision(facts: Facts) -> None:
    # In a process of its own: an import that stops halfway leaves torch's registry unusable for the rest of this one.
    run = subprocess.run([sys.executable, '-c', 'import torchvision'], capture_output=True, text=True, check=False)
    if run.returncode:
        facts.errors['torchvision'] = (run.stderr.strip().splitlines() or ['it crashed'])[-1][:160]


def _look_at_devices(facts: Facts) -> None:
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
    except Exception as error:  # mmcv without operators, and nothing in their place
        facts.errors['mmcv.ops'] = _one_line(error)
        return
    for device in ('cpu', *(f'cuda:{index}' for index in range(len(facts.gpus)))):
        for operator, run in {'NMS': _run_nms, 'RoIAlign': _run_roi_align}.items():
            facts.probes.append(Probe(operator, device, _error_of(run, device)))


def _error_of(run: Callable[[str], bool], device: str) -> str | None:
    try:
        return None if run(device) else 'the result is wrong'
    except Exception as error:  # the point is to report it
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

    # On a map that holds x, the bins of a box hold the x of their centres, half a pixel lower (aligned).
    image = torch.arange(8.0, device=device).expand(1, 1, 8, 8).contiguous()
    box = torch.tensor([[0.0, 2, 2, 6, 6]], device=device)
    out = roi_align(image, box, (2, 2), 1.0, 0, 'avg', True)
    return torch.allclose(out.flatten().cpu(), torch.tensor([2.5, 4.5, 2.5, 4.5]))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else "no message"}'[:160]
