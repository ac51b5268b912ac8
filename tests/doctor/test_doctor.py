"""The doctor's rules on environments described by hand, and the doctor itself where nothing is installed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmplugin import doctor, stack
from mmplugin.doctor.facts import Facts, Gpu, Probe, gather
from mmplugin.doctor.rules import diagnose

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
def test_nothing_to_say_about_a_healthy_environment(facts):
    assert diagnose(facts) == []
    assert doctor.report(facts, []).endswith('Healthy: nothing to mend.\n')


BROKEN = {
    'three mmcv': (
        with_also(healthy(), mmcv='2.1.0', mmcv_lite='2.1.0'),
        'mmcv is installed 3 times, by onedl-mmcv and mmcv and mmcv-lite',
        'python -m pip uninstall -y onedl-mmcv mmcv mmcv-lite && python -m pip install --no-deps onedl-mmcv==2.3.6',
    ),
    'both mmengine': (
        with_also(healthy(stack.STOCK), onedl_mmengine='0.10.12'),
        'mmengine is installed 2 times',
        'python -m pip uninstall -y onedl-mmengine mmengine && '
        'python -m pip install --no-deps onedl-mmengine==0.10.12',
    ),
    'mixed stacks': (
        with_also(without(healthy(), 'onedl-mmdetection'), mmdet='3.3.0'),
        'two stacks are mixed: mmengine is from OneDL, but not mmdet',
        'python -m pip uninstall -y mmdet && python -m pip install --no-deps onedl-mmdetection==3.5.1',
    ),
    'two OpenCV versions': (
        with_also(healthy(), opencv_python='5.0.0.93'),
        'OpenCV is installed 2 times, one over the other: opencv-python 5.0.0.93, opencv-python-headless 4.12.0.88',
        'python -m pip uninstall -y opencv-python opencv-python-headless && '
        'python -m pip install --no-deps opencv-python-headless==4.12.0.88',
    ),
    'OpenCV without libGL': (
        healthy(errors={'cv2': 'ImportError: libGL.so.1: cannot open shared object file', 'mmcv': 'the same'}),
        'OpenCV does not start: ImportError: libGL.so.1',
        'pip install --no-deps opencv-python-headless==4.12.0.88',
    ),
    'no stack': (without(healthy(), 'onedl-mmengine'), 'there is no mmengine', 'pip install onedl-mmengine==0.10.12'),
    'no torch': (without(healthy(), 'torch'), 'torch is not installed', 'python -m pip install torch==2.13.0'),
    'no mmcv': (without(healthy(stack.STOCK), 'mmcv-lite'), 'mmcv-lite is not installed', 'mmcv-lite==2.1.0'),
    'no pkg_resources': (
        healthy(stack.STOCK, setuptools='82.0.0', errors={'mmengine': "No module named 'pkg_resources'"}),
        'mmengine imports pkg_resources, and setuptools 82.0.0 has none',
        "python -m pip install 'setuptools<82'",
    ),
    'mmcv too new': (
        with_also(healthy(stack.STOCK), mmcv_lite='2.2.0'),
        'mmcv 2.2.0: mmdet and mmseg refuse 2.2.0 and above',
        'uninstall -y mmcv-lite && python -m pip install mmcv-lite==2.1.0',
    ),
    'python too new': (healthy(python=(3, 13, 0)), 'Python 3.13', 'PYTHON=python3.11'),
    'GPU too old': (
        healthy(cuda='13.0', archs=['sm_75', 'sm_90'], gpus=[Gpu('Tesla P100', 'sm_60')], driver=True),
        'Tesla P100 is sm_60, and this torch is built for sm_75 sm_90',
        'export CUDA_VISIBLE_DEVICES=',
    ),
    'operator fails': (
        healthy(operators='compiled', probes=[*PROBES, Probe('NMS', 'cuda:0', 'RuntimeError: not compiled for CUDA')]),
        "NMS on cuda:0: mmcv's compiled operator fails (RuntimeError: not compiled for CUDA)",
        'MMCV_WITH_OPS=0 python -m pip install --force-reinstall --no-cache-dir --no-deps onedl-mmcv==2.3.6',
    ),
    'torchvision for another torch': (
        healthy(errors={'torchvision': 'RuntimeError: operator torchvision::nms does not exist'}),
        'import torchvision fails: RuntimeError: operator torchvision::nms does not exist',
        'python -m pip uninstall -y torchvision',
    ),
    'files of a module are gone': (
        healthy(errors={'mmcv': "ModuleNotFoundError: No module named 'cv2'"}),
        "import mmcv fails: ModuleNotFoundError: No module named 'cv2'",
        'pip install --force-reinstall --no-deps opencv-python-headless==4.12.0.88',
    ),
    'a module breaks': (
        healthy(errors={'mmdet': "ModuleNotFoundError: No module named 'shapely'"}),
        "import mmdet fails: ModuleNotFoundError: No module named 'shapely'",
        'pip install --force-reinstall --no-deps shapely',
    ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_broken_environment_gets_one_finding_and_its_command(case):
    facts, problem, command = BROKEN[case]
    (finding,) = diagnose(facts)
    assert finding.broken
    assert problem in finding.problem
    assert command in finding.command
    assert '\n' not in finding.command
    text = doctor.report(facts, [finding])
    assert finding.problem in text
    assert finding.command in text
    assert len(text.splitlines()) <= 24  # one screen


NOTES = {
    'one OpenCV version, twice': with_also(healthy(), opencv_python='4.12.0.88'),
    'no mmseg': without(healthy(), 'onedl-mmsegmentation'),
    'CPU build beside a driver': healthy(driver=True),
}


@pytest.mark.parametrize('case', NOTES)
def test_what_works_all_the_same_is_a_note(case):
    (finding,) = diagnose(NOTES[case])
    assert not finding.broken


@pytest.mark.parametrize(('arch', 'archs', 'runs'), [
    ('sm_86', ['sm_75', 'sm_80', 'sm_90'], True),  # the same major, older minor
    ('sm_80', ['sm_86'], False),  # a binary for a newer minor
    ('sm_120', ['sm_90', 'compute_90'], True),  # PTX is compiled for what comes later
    ('sm_120', ['sm_90'], False),
    ('sm_70', ['sm_75', 'compute_75'], False),
])
def test_gpu_against_the_architectures_of_torch(arch, archs, runs):
    facts = healthy(cuda='13.0', archs=archs, gpus=[Gpu('a GPU', arch)])
    assert (not diagnose(facts)) is runs


def test_exit_code_says_whether_something_is_broken(monkeypatch, capsys):
    for facts, code in [(healthy(), 0), (NOTES['no mmseg'], 0), (BROKEN['no torch'][0], 1)]:
        monkeypatch.setattr(doctor, 'gather', lambda facts=facts: facts)
        assert doctor.main([]) == code
    assert 'python -m pip install torch==2.13.0' in capsys.readouterr().out


def test_here_the_stack_is_recognised_and_the_operators_answer():
    facts = gather()
    assert facts.stack is stack.current()
    assert facts.operators in ('compiled', 'torch', 'torchvision')
    assert {probe.operator for probe in facts.probes} == {'NMS', 'RoIAlign'}
    assert [probe for probe in facts.probes if probe.error] == []
    assert not facts.errors.keys() & {'torch', 'cv2', 'mmcv.ops', 'mmplugin', *stack.current().pins}


def test_starts_where_nothing_is_installed():
    # -S: no site-packages. -s: none of the user's.
    run = subprocess.run(
        [sys.executable, '-S', '-s', '-m', 'mmplugin.doctor'],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert run.returncode == 1
    assert 'python -m pip install torch==2.13.0' in run.stdout
    assert run.stderr == ''


def test_an_import_in_a_broken_environment_names_the_doctor():
    run = subprocess.run(
        [sys.executable, '-S', '-s', '-c', 'import mmplugin'],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert run.returncode == 1
    assert '`python -m mmplugin.doctor` says how to mend it' in run.stderr
