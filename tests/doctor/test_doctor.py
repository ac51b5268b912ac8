"""The doctor's rules for described environments, and the doctor itself without installed packages."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmplugin import doctor, stack
from mmplugin.doctor.facts import Facts, Gpu, Probe, gather
from mmplugin.doctor.rules import diagnose
from mmplugin.findings import ERROR, NOTE, WARNING

ROOT = Path(__file__).parents[2]
COMMON = {'torch': '2.13.0+cpu', 'numpy': '2.2.6', 'opencv-python-headless': '4.12.0.88', 'pycocotools': '2.0.11'}
PROBES = [Probe('NMS', 'cpu'), Probe('RoIAlign', 'cpu')]


def healthy(chosen: stack.Stack = stack.ONEDL, setuptools: str = '81.0.0', **changes) -> Facts:
    have = {**COMMON, 'setuptools': setuptools, **dict(chosen.pins.values())}
    return replace(Facts(python=(3, 11, 7), distributions=have, operators='torch', probes=PROBES), **changes)


def with_also(facts: Facts, **versions: str) -> Facts:
    extra = {name.replace('_', '-'): version for name, version in versions.items()}
    return replace(facts, distributions={**facts.distributions, **extra})


def without(facts: Facts, *names: str) -> Facts:
    return replace(facts, distributions={k: v for k, v in facts.distributions.items() if k not in names})


@pytest.mark.parametrize('facts', [healthy(), healthy(stack.STOCK), healthy(setuptools='84.2.1')])
def test_a_healthy_environment_has_no_findings(facts):
    assert diagnose(facts) == []
    assert doctor.report(facts, []).endswith('No problems found.\n')


BROKEN = {
    'three mmcv': (
        with_also(healthy(), mmcv='2.1.0', mmcv_lite='2.1.0'),
        "mmcv: installed 3 times, by onedl-mmcv, mmcv, mmcv-lite, which overwrite each other's files",
        'python -m pip uninstall -y onedl-mmcv mmcv mmcv-lite && python -m pip install --no-deps onedl-mmcv==2.3.6',
    ),
    'both mmengine': (
        with_also(healthy(stack.STOCK), onedl_mmengine='0.10.12'),
        'mmengine: installed 2 times',
        'python -m pip uninstall -y onedl-mmengine mmengine && python -m pip install --no-deps onedl-mmengine==0.10.12',
    ),
    'mixed stacks': (
        with_also(without(healthy(), 'onedl-mmdetection'), mmdet='3.3.0'),
        'stack: mixed: mmengine is from OneDL, but not mmdet',
        'python -m pip uninstall -y mmdet && python -m pip install --no-deps onedl-mmdetection==3.5.1',
    ),
    'two OpenCV versions': (
        with_also(healthy(), opencv_python='5.0.0.93'),
        'opencv: installed 2 times, by opencv-python 5.0.0.93, opencv-python-headless 4.12.0.88',
        'python -m pip uninstall -y opencv-python opencv-python-headless && '
        'python -m pip install --no-deps opencv-python-headless==4.12.0.88',
    ),
    'OpenCV without libGL': (
        healthy(errors={'cv2': 'ImportError: libGL.so.1: cannot open shared object file', 'mmcv': 'the same'}),
        'opencv: import cv2 fails: ImportError: libGL.so.1',
        'pip install --no-deps opencv-python-headless==4.12.0.88',
    ),
    'no stack': (
        without(healthy(), 'onedl-mmengine'),
        'mmengine: not installed',
        'pip install onedl-mmengine==0.10.12',
    ),
    'no torch': (without(healthy(), 'torch'), 'torch: not installed', 'python -m pip install torch==2.13.0'),
    'torch too old': (
        with_also(healthy(), torch='2.6.0+cu124'),
        'torch: 2.6.0+cu124 is too old: mmplugin requires 2.7 or later, 2.13.0 is tested',
        'python -m pip install torch==2.13.0',
    ),
    'no mmcv': (
        without(healthy(stack.STOCK), 'mmcv-lite'),
        'mmcv: mmcv-lite is not installed; mmplugin requires it',
        'mmcv-lite==2.1.0',
    ),
    'no pkg_resources': (
        healthy(stack.STOCK, setuptools='82.0.0', errors={'mmengine': "No module named 'pkg_resources'"}),
        'setuptools: 82.0.0 has no pkg_resources, which mmengine imports',
        "python -m pip install 'setuptools<82'",
    ),
    'mmcv too new': (
        with_also(healthy(stack.STOCK), mmcv_lite='2.2.0'),
        'mmcv: 2.2.0 is too new: mmdet and mmseg require a version below 2.2.0',
        'uninstall -y mmcv-lite && python -m pip install mmcv-lite==2.1.0',
    ),
    'python too new': (healthy(python=(3, 13, 0)), 'python: 3.13 is not supported', 'PYTHON=python3.11'),
    'GPU too old': (
        healthy(cuda='13.0', archs=['sm_75', 'sm_90'], gpus=[Gpu('Tesla P100', 'sm_60')], driver=True),
        'gpu: Tesla P100 (sm_60) is not supported by this torch, which is built for sm_75 sm_90',
        'export CUDA_VISIBLE_DEVICES=',
    ),
    'operator fails': (
        healthy(operators='compiled', probes=[*PROBES, Probe('NMS', 'cuda:0', 'RuntimeError: not compiled for CUDA')]),
        "operators: NMS on cuda:0 failed with mmcv's compiled operators: RuntimeError: not compiled for CUDA",
        'MMCV_WITH_OPS=0 python -m pip install --force-reinstall --no-cache-dir --no-deps onedl-mmcv==2.3.6',
    ),
    'torchvision for another torch': (
        healthy(errors={'torchvision': 'RuntimeError: operator torchvision::nms does not exist'}),
        'torchvision: import fails: RuntimeError: operator torchvision::nms does not exist',
        'python -m pip uninstall -y torchvision',
    ),
    'files of a module are gone': (
        healthy(errors={'mmcv': "ModuleNotFoundError: No module named 'cv2'"}),
        "mmcv: import fails: ModuleNotFoundError: No module named 'cv2'",
        'pip install --force-reinstall --no-deps opencv-python-headless==4.12.0.88',
    ),
    'a module breaks': (
        healthy(errors={'mmdet': "ModuleNotFoundError: No module named 'shapely'"}),
        "mmdet: import fails: ModuleNotFoundError: No module named 'shapely'",
        'pip install --force-reinstall --no-deps shapely',
    ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_broken_environment_has_one_error_with_a_command(case):
    facts, problem, command = BROKEN[case]
    (finding,) = diagnose(facts)
    assert finding.severity == ERROR
    assert command in finding.fix
    assert '\n' not in finding.fix
    text = doctor.report(facts, [finding])
    assert f'ERROR      {problem}' in text
    assert f'  fix      {finding.fix}' in text
    assert len(text.splitlines()) <= 24  # one screen


HARMLESS = {
    'one OpenCV version, twice': (with_also(healthy(), opencv_python='4.12.0.88'), NOTE),
    'no mmseg': (without(healthy(), 'onedl-mmsegmentation'), NOTE),
    'CPU build of torch on a machine with a driver': (healthy(driver=True), WARNING),
}


@pytest.mark.parametrize('case', HARMLESS)
def test_an_environment_that_works_has_no_error(case):
    facts, severity = HARMLESS[case]
    (finding,) = diagnose(facts)
    assert finding.severity == severity


@pytest.mark.parametrize(
    ('arch', 'archs', 'runs'),
    [
        ('sm_86', ['sm_75', 'sm_80', 'sm_90'], True),  # same major, older minor
        ('sm_80', ['sm_86'], False),  # a binary for a newer minor
        ('sm_120', ['sm_90', 'compute_90'], True),  # PTX is compiled for later architectures
        ('sm_120', ['sm_90'], False),
        ('sm_70', ['sm_75', 'compute_75'], False),
    ],
)
def test_gpu_against_the_architectures_of_torch(arch, archs, runs):
    facts = healthy(cuda='13.0', archs=archs, gpus=[Gpu('a GPU', arch)])
    assert (not diagnose(facts)) is runs


def test_the_doctor_names_the_torch_versions_of_pyproject_and_constraints():
    (lowest,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())
    assert lowest == stack.LOWEST_TORCH
    assert f'torch=={stack.TESTED_TORCH}\n' in (ROOT / 'constraints.txt').read_text()
    assert f'(tested with {stack.TESTED_TORCH}, {lowest} or later is required)' in dict(healthy().table())['torch']


def test_the_exit_code_is_1_if_there_are_errors(monkeypatch, capsys):
    for facts, code in [(healthy(), 0), (HARMLESS['no mmseg'][0], 0), (BROKEN['no torch'][0], 1)]:
        monkeypatch.setattr(doctor, 'gather', lambda facts=facts: facts)
        assert doctor.main([]) == code
    assert 'python -m pip install torch==2.13.0' in capsys.readouterr().out


def test_the_installed_stack_is_recognized_and_its_operators_work():
    facts = gather()
    assert facts.stack is stack.current()
    assert facts.operators in ('compiled', 'torch', 'torchvision')
    assert {probe.operator for probe in facts.probes} == {'NMS', 'RoIAlign'}
    assert [probe for probe in facts.probes if probe.error] == []
    assert not facts.errors.keys() & {'torch', 'cv2', 'mmcv.ops', 'mmplugin', *stack.current().pins}


def test_the_doctor_starts_without_installed_packages():
    # -S: no site-packages. -s: no user site-packages.
    run = subprocess.run(
        [sys.executable, '-S', '-s', '-m', 'mmplugin.doctor'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert run.returncode == 1
    assert 'python -m pip install torch==2.13.0' in run.stdout
    assert run.stderr == ''


def test_a_failed_import_refers_to_the_doctor():
    run = subprocess.run(
        [sys.executable, '-S', '-s', '-c', 'import mmplugin'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert run.returncode == 1
    assert 'Run `python -m mmplugin.doctor` to see how to fix it.' in run.stderr
