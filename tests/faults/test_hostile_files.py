"""No file that a stranger wrote runs code, takes memory or ends in a traceback, whichever way it comes in."""

import ast
import copy
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults.conftest import Tiny
from faults.hostile_files import CALLS, DAMAGED, DAMAGED_SAFETENSORS, PACKINGS, with_code
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint

import mmplugin
from mmplugin import stack
from mmplugin.classification.teacher import Teacher
from mmplugin.cli import main
from mmplugin.convert import command as convert
from mmplugin.engine.predictor import Predictor
from mmplugin.engine.weights import use_safe_loader
from mmplugin.errors import UserError

FRAMEWORK = {'ResNet', 'load_checkpoint'}  # ways in that load what fits, as mmengine does


def _backbone(tiny: Tiny, path: Path, folder: Path) -> None:
    init = dict(type='Pretrained', checkpoint=str(path))
    MODELS.build(dict(type='EfficientViTMSRA', arch='m0', init_cfg=init)).init_weights()


def _resnet(tiny: Tiny, path: Path, folder: Path) -> None:
    use_safe_loader()
    init = dict(type='Pretrained', checkpoint=str(path))
    stack.import_quietly('mmdet.models').ResNet(18, base_channels=8, init_cfg=init).init_weights()


def _load_checkpoint(tiny: Tiny, path: Path, folder: Path) -> None:
    use_safe_loader()
    load_checkpoint(torch.nn.Linear(2, 2), str(path))


def _teacher(tiny: Tiny, path: Path, folder: Path) -> None:
    network = torch.nn.Linear(2, 2)  # in place of timm's
    network.pretrained_cfg = dict(mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[assignment]
    # Not patch.dict, which would also forget the modules that are imported meanwhile.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'timm', SimpleNamespace(create_model=lambda name, **settings: network))
        Teacher(dict(timm='x', checkpoint=str(path)), torch.zeros(3, 1, 1), torch.ones(3, 1, 1), 2).build()


# All ways in. A new one also has to be added to READERS below.
WAYS: dict[str, Callable[[Tiny, Path, Path], object]] = {
    'convert': lambda tiny, path, folder: convert.main([str(path), str(folder / 'out.pth'), '--force']),
    'convert --ema': lambda tiny, path, folder: convert.main([str(path), str(folder / 'out.pth'), '--force', '--ema']),
    'teacher': _teacher,
    'test': lambda tiny, path, folder: tiny.test(folder, path),
    'test --allow-partial': lambda tiny, path, folder: tiny.test(folder, path, '--allow-partial'),
    'train --resume': lambda tiny, path, folder: tiny.train(folder, '--resume', path),
    'load_from': lambda tiny, path, folder: tiny.train(folder, '--cfg-options', f'load_from={path}'),
    'predict': lambda tiny, path, folder: Predictor(tiny.config, path),
    'init_cfg': _backbone,
    'ResNet': _resnet,  # of mmdet, through mmengine's own initialization
    'load_checkpoint': _load_checkpoint,  # mmengine's own function
}


# The default suite tries every file through these ways and a few files through the others; the fault tests try all.
THOROUGH = ('convert', 'train --resume', 'load_checkpoint')
FEW_CALLS = ('mkdir', 'history')
FEW_DAMAGED = ('compressed', 'truncated', 'expanded', 'lying')


def _pairs(every: Iterable[str], few: Iterable[str]) -> Iterator[Any]:
    """Yield ways in, each with the names of files."""
    for way in WAYS:
        if way in THOROUGH:
            yield pytest.param(way, every, id=way)
        else:
            yield pytest.param(way, few, id=f'{way}, a few')
            yield pytest.param(way, every, id=way, marks=pytest.mark.faults)


@pytest.mark.parametrize(('way', 'calls'), _pairs(CALLS, FEW_CALLS))
def test_code_in_a_checkpoint_is_named_and_never_runs(way: str, calls: Iterable[str], tiny: Tiny, tmp_path: Path):
    for call in calls:
        for packing in PACKINGS:
            canary, path = tmp_path / 'canary', tmp_path / f'{call}_{packing}.pth'
            with_code(call, packing, path, canary)
            with pytest.raises(UserError, match=rf'{path.name}.* refused: it contains .* could run code') as error:
                WAYS[way](tiny, path, tmp_path)
            assert not canary.exists(), path
            assert '--trust' in str(error.value)


@pytest.mark.parametrize(('way', 'names'), _pairs((*DAMAGED, *DAMAGED_SAFETENSORS), FEW_DAMAGED))
def test_damaged_files_are_one_message(way: str, names: Iterable[str], tiny: Tiny, tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in names:
        write, suffix = (DAMAGED[name], 'pth') if name in DAMAGED else (DAMAGED_SAFETENSORS[name], 'safetensors')
        path = tmp_path / f'{name}.{suffix}'
        write(path)
        try:
            WAYS[way](tiny, path, tmp_path)
        except UserError as error:
            message = str(error)
        else:
            message = path.name
            assert way in FRAMEWORK, f'{name} was accepted'
            assert name in ('no_weights', 'nothing', 'text_value'), f'{name} was accepted'
        assert path.name in message
        assert message.isprintable(), name
    assert not (tmp_path.parent / 'escaped.txt').exists()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 400, f'{grown:.0f} MB'


def test_a_config_in_a_checkpoint_is_not_run(tiny: Tiny, tmp_path: Path):
    """mmengine's ``Runner.resume`` runs ``meta['config']`` as Python code."""
    content = tiny.content()
    content['meta']['config'] = f'import os\nos.mkdir({str(tmp_path / "canary")!r})\n'
    torch.save(content, tmp_path / 'code.pth')
    tiny.train(tmp_path / 'work', '--resume', tmp_path / 'code.pth')
    assert tiny.runner.iter == 2
    assert not (tmp_path / 'canary').exists()


def test_trust_is_the_only_way_to_run_code(tiny: Tiny, tmp_path: Path):
    path = tmp_path / 'mine.pth'
    with_code('mkdir', 'zip', path, tmp_path / 'canary')
    with pytest.raises(UserError, match='does not fit this model'):
        tiny.test(tmp_path, path, '--trust')
    assert (tmp_path / 'canary').exists()


def test_the_command_line_prints_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture):
    DAMAGED['escape_codes'](tmp_path / 'a.pth')
    assert main(['convert', str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')]) == 2
    said = capsys.readouterr().err
    assert 'red' in said
    assert '\x1b' not in said
    assert '\x07' not in said


@pytest.mark.parametrize('name', ['torchvision://resnet9', 's3://bucket/a.pth', 'mmcls://none', 'petrel://a.pth'])
def test_unknown_addresses_are_a_user_error(name: str):
    use_safe_loader()
    with pytest.raises((UserError, ImportError), match=r'cannot open this address|not supported|torchvision'):
        CheckpointLoader.load_checkpoint(name)


def test_every_scheme_of_mmengine_uses_the_restricted_reader(monkeypatch: pytest.MonkeyPatch):
    stack.import_quietly('mmdet.models')
    stack.import_quietly('mmseg.models')
    monkeypatch.setattr(CheckpointLoader, '_schemes', copy.copy(CheckpointLoader._schemes))
    use_safe_loader()
    assert len({id(loader) for loader in CheckpointLoader._schemes.values()}) == 1
    assert '' in CheckpointLoader._schemes


# Every call in the package that could read a pickle, a checkpoint or code: file, and what it calls.
READERS = {
    ('convert/checkpoint_io.py', 'safetensors.safe_open'),
    ('convert/checkpoint_io.py', 'torch.load'),  # restricted, unless --trust
    ('convert/hub.py', 'hf_hub_download'),  # writes into the cache; the file is read by checkpoint_io
    ('engine/runner.py', 'CheckpointLoader.load_checkpoint'),  # replaced by use_safe_loader
    ('data/layouts/yolo.py', 'yaml.load'),  # a SafeLoader without merge keys
    ('engine/runner.py', 'load'),  # a function of engine/weights.py, for what was read
    ('deploy/quantize.py', 'onnx.load'),  # likewise; protobuf, no code
    ('deploy/runtimes.py', 'torch.export.load'),  # of the file that `mmplugin export` has just written
    ('search/run.py', 'LatencyTable.load'),  # JSON
}
NAMES = {
    'load', 'loads', 'load_file', 'load_checkpoint', 'safe_open', 'load_url', 'load_state_dict_from_url', 'Unpickler',
    'load_from_local', '_load_checkpoint', 'fromstring', 'from_pretrained', 'hf_hub_download',
}  # fmt: skip
BUILTINS = {'eval', 'exec', '__import__', 'compile'}
HARMLESS = {'json.load', 'json.loads', 'image.load'}


def _reading_calls() -> set[tuple[str, str]]:
    root = Path(mmplugin.__file__).parent
    found = set()
    for path in root.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                known = name.rpartition('.')[2] in NAMES or name in BUILTINS
                if known and name not in HARMLESS:
                    found.add((path.relative_to(root).as_posix(), name))
    return found


def test_there_is_no_other_way_in():
    assert _reading_calls() - READERS == set(), 'read the file with checkpoint_io.read, and add the way in to WAYS'
    assert READERS - _reading_calls() == set(), 'remove it from READERS'
