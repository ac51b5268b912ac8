"""What an import loads, what the constraints pin, and what a wheel contains."""

import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmplugin
from mmplugin import stack

ROOT = Path(__file__).parents[1]
PHONES = ('executorch', 'coremltools')  # the only packages that no constraints file has
FILES = {stack.ONEDL: 'constraints.txt', stack.STOCK: 'constraints-stock.txt'}


def python(code: str, *, path: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(path)}
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd, env=env)


def pins(file: str) -> dict[str, str]:
    lines = (line.partition('#')[0].strip() for line in (ROOT / file).read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == '==', f'{file}: {requirement} is not an exact version'
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}


def test_import_is_silent_and_loads_no_framework():
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
    # The only line is this test's: mmplugin itself printed nothing.
    (line,) = run.stdout.splitlines()
    heavy = {'mmdet', 'mmpretrain', 'mmseg', 'mmcv.ops', 'cv2', 'matplotlib', 'scipy', 'pycocotools', 'timm',
             'torchvision', 'numba', 'rich', 'jinja2', 'huggingface_hub', 'mmengine.hooks', 'mmengine.runner',
             'torch._dynamo', 'torch._inductor'}  # fmt: skip
    assert sorted(heavy.intersection(line.split())) == []


@pytest.mark.parametrize('chosen', FILES, ids=lambda chosen: chosen.title)
def test_the_constraints_pin_the_stack_that_the_code_names(chosen):
    pinned = pins(FILES[chosen])
    for name, version in (*chosen.pins.values(), chosen.mmpretrain):
        assert pinned[name] == version
    others = {name for other in FILES if other is not chosen for name, _ in other.pins.values()}
    assert not others & set(pinned)


def test_both_stacks_pin_shared_packages_alike():
    one, two = (pins(file) for file in FILES.values())
    assert {name for name in one.keys() & two.keys() if one[name] != two[name]} == {'setuptools'}
    assert int(two['setuptools'].split('.')[0]) < 82


def test_the_constraints_are_complete():
    """The requirements of the listed distributions are listed too, except those omitted with a reason."""
    file = FILES[stack.current()]
    pinned = pins(file)
    # The head of constraints.txt gives the reasons.
    omitted = {'opencv-python', 'numba', 'imagecorruptions-imaug', 'torchvision', 'openvino-telemetry'}
    for name in pinned:
        try:
            requirements = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            assert name not in {pin[0] for pin in stack.current().pins.values()}
            continue
        for requirement in requirements:
            required = canonicalize_name(requirement.name)
            if (requirement.marker and not requirement.marker.evaluate({'extra': ''})) or required in omitted:
                continue
            if required.startswith(('nvidia-', 'triton', 'cuda-')):  # a CUDA build of torch pins its own
                continue
            assert required in pinned, f'{name} requires {requirement}'
            assert requirement.specifier.contains(pinned[required]), f'{name} requires {requirement}'
    assert not omitted & set(pinned)


def test_the_documentation_has_exact_pins():
    assert 'mkdocs-material' in pins('constraints-docs.txt')


def test_pre_commit_uses_the_pinned_ruff():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    used = {requirement for hook in hooks for requirement in hook['additional_dependencies'] if 'ruff' in requirement}
    assert used == {f'ruff=={pins("constraints.txt")["ruff"]}'}


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == mmplugin.__version__


def test_the_model_index_lists_every_config_with_its_published_results():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    files = [yaml.safe_load((ROOT / path).read_text()) for path in index['Import']]
    collections = {collection['Name'] for content in files for collection in content['Collections']}
    models = {model['Config']: model for content in files for model in content['Models']}

    configs = [path for folder in ('detection', 'segmentation') for path in (ROOT / 'configs' / folder).glob('*.py')]
    assert models.keys() == {path.relative_to(ROOT).as_posix() for path in configs}
    for path in configs:
        model = models[path.relative_to(ROOT).as_posix()]
        assert model['Name'] == path.stem
        assert model['In Collection'] in collections
        # The first line of a config: `# Published: box AP 37.9, mask AP 35.4 (...).` or `# Published: none.`
        published = dict(re.findall(r'(box AP|mask AP|mIoU) ([\d.]+)', path.read_text().partition('\n')[0]))
        listed = {name: str(value) for r in model.get('Results', []) for name, value in r['Metrics'].items()}
        assert listed == published


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Build a wheel from a copy of the sources and unpack it into an empty folder."""
    source = tmp_path_factory.mktemp('source')
    for name in ('mmplugin', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'NOTICE', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    run = python('from setuptools.build_meta import build_wheel; build_wheel("dist")', path=source, cwd=source)
    assert run.returncode == 0, run.stderr
    assert not (source / 'mmplugin' / '.mim').exists()  # the build writes only into the wheel
    (built,) = (source / 'dist').glob('*.whl')
    target = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(built).extractall(target)
    return target


def test_a_wheel_contains_every_config_tool_and_module(wheel):
    for name in ('configs', 'tools'):
        files = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob('*') if p.suffix in ('.py', '.sh', '.yml')}
        packed = wheel / 'mmplugin' / '.mim' / name
        assert {p.relative_to(packed) for p in packed.rglob('*') if p.is_file()} == files
    kinds = ('.py', '.html', '.typed')
    modules = {
        p.relative_to(ROOT) for p in (ROOT / 'mmplugin').rglob('*') if p.suffix in kinds and '.mim' not in p.parts
    }
    packed = {p.relative_to(wheel) for p in (wheel / 'mmplugin').rglob('*') if p.is_file() and '.mim' not in p.parts}
    assert packed == modules


def test_mmengine_finds_a_config_in_the_model_index_of_a_wheel(wheel):
    from mmengine.config.utils import _get_cfg_metainfo  # what mmengine.hub.get_config reads the index with

    found = _get_cfg_metainfo(str(wheel / 'mmplugin'), 'detection/maskrcnn_v2_s2.py')
    assert found['Name'] == 'maskrcnn_v2_s2'
    assert (wheel / 'mmplugin' / '.mim' / found['Config']).is_file()


def test_a_wheel_declares_its_requirements(wheel):
    (info,) = wheel.glob('*.dist-info')
    distribution = metadata.PathDistribution(info)
    for chosen in FILES:
        for requirement in chosen.requirements:
            assert f'{requirement}; extra == "{chosen.extra}"' in distribution.requires
    assert distribution.version == mmplugin.__version__
    assert 'mmplugin = mmplugin.cli:main' in (info / 'entry_points.txt').read_text()
    assert 'Apache License' in (info / 'licenses' / 'LICENSE').read_text()
    assert (info / 'licenses' / 'NOTICE').is_file()


def test_the_constraints_satisfy_the_requirements_of_a_wheel(wheel):
    (info,) = wheel.glob('*.dist-info')
    for line in metadata.PathDistribution(info).requires:
        requirement = Requirement(line)
        for chosen, file in FILES.items():
            other = next(stack for stack in FILES if stack is not chosen)
            if requirement.marker and requirement.marker.evaluate({'extra': other.extra}):
                continue
            if requirement.name in (other.mmpretrain[0], *PHONES):  # of extras that are not in every file
                continue
            pinned = pins(file)[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned), f'{file} pins {pinned}, pyproject.toml says {requirement}'


def test_a_wheel_finds_its_own_configs(wheel, tmp_path):
    code = 'from mmplugin.paths import find_config; print(find_config("maskrcnn_v2_s2.py"))'
    run = python(code, path=wheel, cwd=tmp_path)
    assert run.stdout.strip() == str(wheel / 'mmplugin/.mim/configs/detection/maskrcnn_v2_s2.py'), run.stderr


@pytest.mark.parametrize(('gpu', 'reachable'), [(False, True), (False, False), (True, True)], ids=str)
def test_setup_takes_the_cpu_build_of_torch_without_a_gpu_if_its_index_answers(gpu, reachable, tmp_path):
    if sys.platform != 'linux':
        pytest.skip('only PyPI for Linux has the CUDA build')
    (tmp_path / 'torch').mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f'http://127.0.0.1:{server.server_port}'
        if not reachable:
            server.shutdown()
            server.server_close()
        command = [
            'make',
            '-s',
            'torch-options',
            f'CPU_INDEX={index}',
            f'NVIDIA_SMI={"true" if gpu else "no-such-tool"}',
        ]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        server.shutdown()
    assert printed == (f'--extra-index-url {index}' if reachable and not gpu else '')
