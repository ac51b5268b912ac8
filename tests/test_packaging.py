"""What an import brings along, what the constraints hold, and what a wheel carries."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmplugin import stack

ROOT = Path(__file__).parents[1]
FILES = {stack.ONEDL: 'constraints.txt', stack.STOCK: 'constraints-stock.txt'}


def python(code: str, *, path: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(path)}
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd, env=env)


def pins(file: str) -> dict[str, str]:
    lines = (line.partition('#')[0].strip() for line in (ROOT / file).read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == '==', f'{file}: {requirement} is no exact version'
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}


def test_import_is_silent_and_brings_no_framework():
    code = """
import sys, torch, mmengine
before = set(sys.modules)
import mmplugin
print(*sorted({name for name in set(sys.modules) - before if not name.startswith('mmplugin')}))
from mmengine.registry import HOOKS, MODELS
for registry, name in [(MODELS, 'EfficientFormer'), (MODELS, 'EfficientFormerV2'), (MODELS, 'EfficientViTMSRA'),
                       (HOOKS, 'FreezeNormHook')]:
    assert registry.get(name), name
"""
    run = python(code)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ''
    # The last line is ours: mmplugin itself printed nothing before it.
    (line,) = run.stdout.splitlines()
    heavy = {'mmdet', 'mmseg', 'mmcv.ops', 'cv2', 'matplotlib', 'scipy', 'pycocotools', 'timm', 'torchvision', 'numba',
             'rich', 'mmengine.hooks', 'mmengine.runner', 'torch._dynamo', 'torch._inductor'}
    assert sorted(heavy.intersection(line.split())) == []


@pytest.mark.parametrize('chosen', FILES, ids=lambda chosen: chosen.title)
def test_the_constraints_hold_the_stack_that_the_code_names(chosen):
    held = pins(FILES[chosen])
    for name, version in chosen.pins.values():
        assert held[name] == version
    others = {name for other in FILES if other is not chosen for name, _ in other.pins.values()}
    assert not others & set(held)


def test_both_stacks_pin_what_they_share_alike():
    one, two = (pins(file) for file in FILES.values())
    assert {name for name in one.keys() & two.keys() if one[name] != two[name]} == {'setuptools'}
    assert int(two['setuptools'].split('.')[0]) < 82


def test_the_constraints_are_complete():
    """What the listed distributions require is on the list, but for what was left out with a reason."""
    file = FILES[stack.current()]
    held = pins(file)
    # the head of constraints.txt says why
    left_out = {'opencv-python', 'numba', 'imagecorruptions-imaug', 'huggingface-hub', 'torchvision'}
    for name in held:
        try:
            wanted = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            assert name not in {pin[0] for pin in stack.current().pins.values()}
            continue
        for requirement in wanted:
            needed = canonicalize_name(requirement.name)
            if (requirement.marker and not requirement.marker.evaluate({'extra': ''})) or needed in left_out:
                continue
            if needed.startswith(('nvidia-', 'triton', 'cuda-')):  # a CUDA build of torch pins its own
                continue
            assert needed in held, f'{name} needs {requirement}'
            assert requirement.specifier.contains(held[needed]), f'{name} needs {requirement}'
    assert not left_out & set(held)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Build a wheel from a copy of the sources, and unpack it where nothing else lies."""
    source = tmp_path_factory.mktemp('source')
    for name in ('mmplugin', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', *FILES.values()):
        shutil.copy(ROOT / name, source)
    run = python('from setuptools.build_meta import build_wheel; build_wheel("dist")', path=source, cwd=source)
    assert run.returncode == 0, run.stderr
    assert not (source / 'mmplugin' / '.mim').exists()  # the build writes into the wheel alone
    (built,) = (source / 'dist').glob('*.whl')
    target = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(built).extractall(target)
    return target


def test_a_wheel_carries_every_config_tool_and_module(wheel):
    for name in ('configs', 'tools'):
        files = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob('*') if p.suffix in ('.py', '.sh')}
        carried = wheel / 'mmplugin' / '.mim' / name
        assert {p.relative_to(carried) for p in carried.rglob('*') if p.is_file()} == files
    modules = {p.relative_to(ROOT) for p in (ROOT / 'mmplugin').rglob('*.py') if '.mim' not in p.parts}
    assert {p.relative_to(wheel) for p in (wheel / 'mmplugin').rglob('*.py') if '.mim' not in p.parts} == modules


def test_a_wheel_says_what_it_needs(wheel):
    (info,) = wheel.glob('*.dist-info')
    requires = metadata.PathDistribution(info).requires
    for chosen in FILES:
        for requirement in chosen.requirements:
            assert f'{requirement}; extra == "{chosen.extra}"' in requires
    assert 'mmplugin = mmplugin.cli:main' in (info / 'entry_points.txt').read_text()
    assert 'Apache License' in (info / 'licenses' / 'LICENSE').read_text()


def test_a_wheel_finds_its_own_configs(wheel, tmp_path):
    code = 'from mmplugin.paths import find_config; print(find_config("maskrcnn_v2_s2.py"))'
    run = python(code, path=wheel, cwd=tmp_path)
    assert run.stdout.strip() == str(wheel / 'mmplugin/.mim/configs/detection/maskrcnn_v2_s2.py'), run.stderr
