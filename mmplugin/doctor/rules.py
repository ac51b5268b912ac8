"""What the doctor knows: pure functions from facts to findings, each with the one command that mends it."""

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from mmplugin import stack
from mmplugin.doctor.facts import Facts

PIP = 'python -m pip'
TORCH = 'torch==2.13.0'
HEADLESS = 'opencv-python-headless==4.12.0.88'

# Distributions that write the same import name: one of each line is enough, two overwrite each other's files.
RIVALS = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')


class Finding(NamedTuple):
    """One thing to mend: broken means it cannot work as it is, otherwise it is worth knowing."""

    broken: bool
    problem: str
    command: str


def diagnose(facts: Facts) -> list[Finding]:
    """Apply every rule, the broken first; an import error that a rule explains is not told twice."""
    findings = [finding for rule in RULES for finding in rule(facts)]
    return sorted(findings, key=lambda finding: not finding.broken)


def _present(facts: Facts, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in facts.distributions]


def _install(*requirements: str, remove: list[str] | None = None) -> str:
    """Write a pip command; what is removed goes first, because shared files vanish with it."""
    install = f'{PIP} install {" ".join(map(shlex.quote, requirements))}'
    return f'{PIP} uninstall -y {" ".join(remove)} && {install}' if remove else install


def python_version(facts: Facts) -> Iterator[Finding]:
    if not (3, 10) <= facts.python[:2] <= (3, 12):
        have = '.'.join(map(str, facts.python[:2]))
        problem = f'Python {have}: the OpenMMLab packages run on 3.10, 3.11 and 3.12'
        yield Finding(True, problem, 'make clean setup PYTHON=python3.11')


def missing(facts: Facts) -> Iterator[Finding]:
    if 'torch' not in facts.distributions:
        yield Finding(True, 'torch is not installed; it comes first, by exact version', _install(TORCH))
    found = facts.stack
    if found is None:
        yield Finding(True, 'no OpenMMLab packages: there is no mmengine', _install(*stack.ONEDL.requirements))
        return
    uses = {'mmdet': 'detection needs it', 'mmseg': 'segmentation needs it'}
    for module, (name, version) in found.pins.items():
        if not _present(facts, RIVALS[module]):
            problem = f'{name} is not installed: {uses.get(module, "nothing runs without it")}'
            yield Finding(module not in uses, problem, _install(f'{name}=={version}'))


def doubled(facts: Facts) -> Iterator[Finding]:
    found = facts.stack or stack.ONEDL
    for module, names in RIVALS.items():
        if len(have := _present(facts, names)) > 1:
            name, version = found.pins[module]
            yield Finding(
                True,
                f'{module} is installed {len(have)} times, by {" and ".join(have)}: they overwrite each other',
                _install('--no-deps', f'{name}=={version}', remove=have),
            )


def mixed(facts: Facts) -> Iterator[Finding]:
    """One package of OneDL beside one of stock, each alone under its import name."""
    found = facts.stack
    if found is None or any(doubled(facts)):
        return  # what mends a doubled install may mend this
    other = 'stock' if found is stack.ONEDL else 'onedl'
    strangers = {
        name: module
        for module, names in RIVALS.items()
        for name in _present(facts, names)
        if name.startswith('onedl-') == (other == 'onedl')
    }
    if strangers:
        yield Finding(
            True,
            f'two stacks are mixed: mmengine is from {found.title}, but not {", ".join(strangers)}',
            _install('--no-deps', *('=='.join(found.pins[module]) for module in strangers.values()),
                     remove=[*strangers]),
        )


def opencv(facts: Facts) -> Iterator[Finding]:
    have = _present(facts, OPENCV)
    mend = _install('--no-deps', HEADLESS, remove=have)
    if not have and facts.stack:
        yield Finding(True, 'OpenCV is not installed', _install(HEADLESS))
    elif 'cv2' in facts.errors:
        yield Finding(True, f'OpenCV does not start: {facts.errors["cv2"]}', mend)
    elif len(have) > 1:
        # Of one version they hold the same files, and pip brings both by itself.
        versions = {facts.distributions[name] for name in have}
        text = ', '.join(f'{name} {facts.distributions[name]}' for name in have)
        yield Finding(len(versions) > 1, f'OpenCV is installed {len(have)} times, one over the other: {text}', mend)


def versions(facts: Facts) -> Iterator[Finding]:
    found = facts.stack
    if found is None:
        return
    setuptools = facts.distributions.get('setuptools')
    if found.needs_pkg_resources and (setuptools is None or _numbers(setuptools) >= (82,)):
        have = f'setuptools {setuptools} has none' if setuptools else 'setuptools is not installed'
        yield Finding(True, f'mmengine imports pkg_resources, and {have}', _install('setuptools<82'))
    mmcv = next((facts.distributions[name] for name in _present(facts, ('mmcv', 'mmcv-lite'))), None)
    if found.below_mmcv and mmcv and _numbers(mmcv) >= _numbers(found.below_mmcv):
        yield Finding(
            True,
            f'mmcv {mmcv}: mmdet and mmseg refuse {found.below_mmcv} and above',
            _install('mmcv-lite==2.1.0', remove=_present(facts, RIVALS['mmcv'])),
        )


def gpus(facts: Facts) -> Iterator[Finding]:
    if facts.driver and 'torch' in facts.distributions and 'torch' not in facts.errors:
        if facts.cuda is None:
            problem = 'there is an NVIDIA driver, but torch is a build without CUDA: only the CPU will work'
            yield Finding(False, problem, _install('--force-reinstall', TORCH))
        elif not facts.gpus:
            yield Finding(False, 'there is an NVIDIA driver, but torch sees no GPU: this says why, if', 'nvidia-smi')
    for gpu in facts.gpus:
        if not _runs_on(gpu.arch, facts.archs):
            yield Finding(
                True,
                f'{gpu.name} is {gpu.arch}, and this torch is built for {" ".join(facts.archs)}: '
                'take another build of torch, or the CPU',
                'export CUDA_VISIBLE_DEVICES=',
            )


def operators(facts: Facts) -> Iterator[Finding]:
    # Without compiled operators mmplugin's take their place, on every device.
    name, version = (facts.stack or stack.ONEDL).pins['mmcv']
    uncompiled = f'MMCV_WITH_OPS=0 {PIP} install --force-reinstall --no-cache-dir --no-deps {name}=={version}'
    if 'mmcv.ops' in facts.errors:
        yield Finding(True, f'mmcv has no operators: {facts.errors["mmcv.ops"]}', uncompiled)
    if failed := [probe for probe in facts.probes if probe.error]:
        what = ', '.join(f'{probe.operator} on {probe.device}' for probe in failed)
        problem = f"{what}: mmcv's {facts.operators} operator fails ({failed[0].error})"
        yield Finding(True, problem, uncompiled)


def imports(facts: Facts) -> Iterator[Finding]:
    """Imports that fail for a reason no other rule names."""
    if any(finding.broken for rule in RULES if rule is not imports for finding in rule(facts)):
        return
    owners = {module: '=='.join(pin) for module, pin in facts.stack.pins.items()}
    owners |= {'torch': TORCH, 'faster_coco_eval': 'faster-coco-eval', 'cv2': HEADLESS, 'yaml': 'PyYAML'}
    special = {'mmplugin': 'make setup', 'torchvision': f'{PIP} uninstall -y torchvision'}  # nothing here needs it
    for module, error in facts.errors.items():
        lacking = re.search(r"No module named '(\w+)", error)
        culprit = lacking[1] if lacking and lacking[1] != 'mmplugin' else module
        mend = _install('--force-reinstall', '--no-deps', owners.get(culprit, culprit))
        yield Finding(True, f'import {module} fails: {error}', special.get(module, mend))


RULES = (python_version, missing, doubled, mixed, opencv, versions, gpus, operators, imports)


def _numbers(version: str) -> tuple[int, ...]:
    """Turn ``2.13.0+cpu`` into ``(2, 13, 0)``; letters end it."""
    numbers = []
    for part in version.split('+')[0].split('.'):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _runs_on(arch: str, archs: list[str]) -> bool:
    """Tell whether code built for ``archs`` runs on ``arch``: same major and not newer, or any older PTX."""

    def number(name: str) -> int:
        return int(''.join(filter(str.isdigit, name)))

    own = number(arch)
    binary = any(a.startswith('sm_') and number(a) // 10 == own // 10 and number(a) <= own for a in archs)
    return binary or any(a.startswith('compute_') and number(a) <= own for a in archs)
