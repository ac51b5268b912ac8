"""Rules of the doctor: functions from facts to findings. Every fix is a single command."""

import re
import shlex
from collections.abc import Iterator

from mmplugin import stack
from mmplugin.doctor.facts import OPERATORS, Facts
from mmplugin.findings import ERROR, NOTE, WARNING, Finding, by_severity, has_errors

PIP = 'python -m pip'
TORCH = f'torch=={stack.TESTED_TORCH}'
HEADLESS = 'opencv-python-headless==4.12.0.88'

# Distributions that install the same import name and overwrite each other's files: only one of each may be installed.
RIVALS = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')


def diagnose(facts: Facts) -> list[Finding]:
    """Apply every rule and return the findings, errors first."""
    return by_severity(finding for rule in RULES for finding in rule(facts))


def _present(facts: Facts, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in facts.distributions]


def _install(*requirements: str, remove: list[str] | None = None) -> str:
    """Return a pip command. Packages are removed before the installation, because that deletes shared files."""
    install = f'{PIP} install {" ".join(map(shlex.quote, requirements))}'
    return f'{PIP} uninstall -y {" ".join(remove)} && {install}' if remove else install


def python_version(facts: Facts) -> Iterator[Finding]:
    """Check that the OpenMMLab packages support this Python."""
    if not (3, 10) <= facts.python[:2] <= (3, 12):
        have = '.'.join(map(str, facts.python[:2]))
        problem = f'{have} is not supported: the OpenMMLab packages run on 3.10, 3.11 and 3.12'
        yield Finding(ERROR, problem, 'python', 'make clean setup PYTHON=python3.11')


def torch_version(facts: Facts) -> Iterator[Finding]:
    """Check that torch is installed and recent enough."""
    have = facts.distributions.get('torch')
    if have is None:
        yield Finding(ERROR, 'not installed; install it first, by exact version', 'torch', _install(TORCH))
    elif _numbers(have) < _numbers(stack.LOWEST_TORCH):
        problem = f'{have} is too old: mmplugin requires {stack.LOWEST_TORCH} or later, {stack.TESTED_TORCH} is tested'
        yield Finding(ERROR, problem, 'torch', _install(TORCH))


def missing_packages(facts: Facts) -> Iterator[Finding]:
    """Check that all packages of the stack are installed."""
    found = facts.stack
    if found is None:
        problem = 'not installed; mmplugin requires the OpenMMLab packages'
        yield Finding(ERROR, problem, 'mmengine', _install(*stack.ONEDL.requirements))
        return
    optional = {'mmdet': 'detection', 'mmseg': 'segmentation'}
    for module, (name, version) in found.pins.items():
        if not _present(facts, RIVALS[module]):
            problem = f'{name} is not installed; {optional.get(module, "mmplugin")} requires it'
            yield Finding(NOTE if module in optional else ERROR, problem, module, _install(f'{name}=={version}'))


def duplicate_packages(facts: Facts) -> Iterator[Finding]:
    """Check that every import name comes from one distribution."""
    found = facts.stack or stack.ONEDL
    for module, names in RIVALS.items():
        if len(have := _present(facts, names)) > 1:
            name, version = found.pins[module]
            yield Finding(
                ERROR,
                f"installed {len(have)} times, by {', '.join(have)}, which overwrite each other's files",
                module,
                _install('--no-deps', f'{name}=={version}', remove=have),
            )


def mixed_stacks(facts: Facts) -> Iterator[Finding]:
    """Check that all packages come from the same stack."""
    found = facts.stack
    if found is None or any(duplicate_packages(facts)):
        return  # the fix of a duplicate may fix this too
    modules = {
        name: module
        for module, names in RIVALS.items()
        for name in _present(facts, names)
        if name.startswith('onedl-') != (found is stack.ONEDL)
    }
    if modules:
        yield Finding(
            ERROR,
            f'mixed: mmengine is from {found.title}, but not {", ".join(modules)}',
            'stack',
            _install('--no-deps', *('=='.join(found.pins[module]) for module in modules.values()), remove=[*modules]),
        )


def opencv(facts: Facts) -> Iterator[Finding]:
    """Check that OpenCV is installed once and can be imported."""
    have = _present(facts, OPENCV)
    fix = _install('--no-deps', HEADLESS, remove=have)
    if not have and facts.stack:
        yield Finding(ERROR, 'not installed', 'opencv', _install(HEADLESS))
    elif 'cv2' in facts.errors:
        yield Finding(ERROR, f'import cv2 fails: {facts.errors["cv2"]}', 'opencv', fix)
    elif len(have) > 1:
        # pip itself may install several: of the same version, they contain the same files.
        same = len({facts.distributions[name] for name in have}) == 1
        text = ', '.join(f'{name} {facts.distributions[name]}' for name in have)
        problem = f"installed {len(have)} times, by {text}, which overwrite each other's files"
        yield Finding(NOTE if same else ERROR, problem, 'opencv', fix)


def stock_versions(facts: Facts) -> Iterator[Finding]:
    """Check the versions that the stock packages refuse or cannot run with."""
    found = facts.stack
    if found is None:
        return
    setuptools = facts.distributions.get('setuptools')
    if found.needs_pkg_resources and (setuptools is None or _numbers(setuptools) >= (82,)):
        have = f'{setuptools} has no pkg_resources' if setuptools else 'not installed, and with it pkg_resources'
        yield Finding(ERROR, f'{have}, which mmengine imports', 'setuptools', _install('setuptools<82'))
    mmcv = next((facts.distributions[name] for name in _present(facts, ('mmcv', 'mmcv-lite'))), None)
    if found.below_mmcv and mmcv and _numbers(mmcv) >= _numbers(found.below_mmcv):
        yield Finding(
            ERROR,
            f'{mmcv} is too new: mmdet and mmseg require a version below {found.below_mmcv}',
            'mmcv',
            _install('mmcv-lite==2.1.0', remove=_present(facts, RIVALS['mmcv'])),
        )


def gpus(facts: Facts) -> Iterator[Finding]:
    """Check that torch finds and supports the GPUs."""
    if facts.driver and 'torch' in facts.distributions and 'torch' not in facts.errors:
        if facts.cuda is None:
            problem = 'not used: there is an NVIDIA driver, but this torch is built without CUDA'
            yield Finding(WARNING, problem, 'gpu', _install('--force-reinstall', TORCH))
        elif not facts.gpus:
            problem = 'not used: there is an NVIDIA driver, but torch finds no GPU; check that the driver lists one'
            yield Finding(WARNING, problem, 'gpu', 'nvidia-smi')
    for gpu in facts.gpus:
        if not _runs_on(gpu.arch, facts.archs):
            yield Finding(
                ERROR,
                f'{gpu.name} ({gpu.arch}) is not supported by this torch, which is built for {" ".join(facts.archs)}; '
                'use the CPU, or another build of torch',
                'gpu',
                'export CUDA_VISIBLE_DEVICES=',
            )


def operators(facts: Facts) -> Iterator[Finding]:
    """Check that mmcv's operators work on every device."""
    # Without compiled operators, mmplugin installs its own, which run on every device.
    name, version = (facts.stack or stack.ONEDL).pins['mmcv']
    uncompiled = f'MMCV_WITH_OPS=0 {PIP} install --force-reinstall --no-cache-dir --no-deps {name}=={version}'
    if 'mmcv.ops' in facts.errors:
        yield Finding(ERROR, f'import mmcv.ops fails: {facts.errors["mmcv.ops"]}', 'operators', uncompiled)
    if failed := [probe for probe in facts.probes if probe.error]:
        names = ', '.join(f'{probe.operator} on {probe.device}' for probe in failed)
        problem = f'{names} failed with {OPERATORS[facts.operators]}: {failed[0].error}'
        yield Finding(ERROR, problem, 'operators', uncompiled)


def imports(facts: Facts) -> Iterator[Finding]:
    """Report imports that fail, unless another rule found an error that explains them."""
    if has_errors(finding for rule in RULES if rule is not imports for finding in rule(facts)):
        return
    pins = facts.stack.pins if facts.stack else {}
    owners = {module: '=='.join(pin) for module, pin in pins.items()}
    owners |= {'torch': TORCH, 'faster_coco_eval': 'faster-coco-eval', 'cv2': HEADLESS, 'yaml': 'PyYAML'}
    special = {'mmplugin': 'make setup', 'torchvision': f'{PIP} uninstall -y torchvision'}  # torchvision is optional
    for module, error in facts.errors.items():
        lacking = re.search(r"No module named '(\w+)", error)
        culprit = lacking[1] if lacking and lacking[1] != 'mmplugin' else module
        fix = _install('--force-reinstall', '--no-deps', owners.get(culprit, culprit))
        yield Finding(ERROR, f'import fails: {error}', module, special.get(module, fix))


RULES = (
    python_version,
    torch_version,
    missing_packages,
    duplicate_packages,
    mixed_stacks,
    opencv,
    stock_versions,
    gpus,
    operators,
    imports,
)


def _numbers(version: str) -> tuple[int, ...]:
    """Turn ``2.13.0+cpu`` into ``(2, 13, 0)``, up to the first part that is not a number."""
    numbers = []
    for part in version.split('+')[0].split('.'):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _runs_on(arch: str, archs: list[str]) -> bool:
    """Return whether code built for ``archs`` runs on ``arch``: same major and not newer, or older PTX."""

    def number(name: str) -> int:
        return int(''.join(filter(str.isdigit, name)))

    own = number(arch)
    binary = any(a.startswith('sm_') and number(a) // 10 == own // 10 and number(a) <= own for a in archs)
    return binary or any(a.startswith('compute_') and number(a) <= own for a in archs)
