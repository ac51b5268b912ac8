"""Files are read without running code in them, and written completely or not at all."""

import argparse
import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint
from parity import kit

from mmplugin.cli import main
from mmplugin.convert import checkpoint_io as files
from mmplugin.convert import convert, verify
from mmplugin.errors import UserError

TIMM, AUTHORS, DENSE = 'timm/efficientvit_m0', 'official/efficientvit_m0', 'upstream-coco/efficientformerv2_s0'


@pytest.fixture
def source(tmp_path):
    return save({'model': kit.measured(AUTHORS), 'args': argparse.Namespace(lr=1e-3)}, tmp_path / 'm0.pth')


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


def run(*argv):
    return main(['convert', *map(str, argv)])


class RunsCode:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class TestReading:
    @pytest.mark.parametrize('zipped', [True, False])
    def test_a_pickle_that_runs_code_is_refused_by_name(self, tmp_path, zipped):
        content = {'model': kit.cheap(AUTHORS), 'hook': RunsCode(tmp_path / 'trace')}
        path = save(content, tmp_path / 'evil.pth', _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r'evil\.pth refused: .*(posix|nt)\.mkdir.*--trust'):
            files.read(path)
        assert not (tmp_path / 'trace').exists()
        files.read(path, trust=True)
        assert (tmp_path / 'trace').exists()

    def test_options_and_logs_of_training_are_allowed(self, tmp_path):
        content = {
            'args': argparse.Namespace(lr=1e-3),
            'message_hub': {'loss': HistoryBuffer([1.0, 2.0], [1, 1])},
            'best': np.float64(0.5),
            'epoch': np.int64(3),
        }
        read = files.read(save(content, tmp_path / 'a.pth'))
        assert (read['args'].lr, read['best'], read['epoch']) == (1e-3, 0.5, 3)

    def test_getattr_gives_access_to_the_methods_of_loss_histories_only(self, tmp_path):
        """Even if getattr is allowed for the whole process, as mmengine's runner does."""

        class Trick:
            def __reduce__(self):
                return getattr, (HistoryBuffer, '__init__')

        path, known = save({'x': Trick()}, tmp_path / 'evil.pth'), torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals([getattr])
        try:
            with pytest.raises(UserError, match=r'evil\.pth refused: .*builtins\.getattr'):
                files.read(path)
            assert getattr in torch.serialization.get_safe_globals()
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(known)

    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (b'', 'is empty'),
            (b'<html>Quota exceeded</html>\n', 'is a text file'),
            (b'version https://git-lfs.github.com/spec/v1\n', 'is a text file'),
            (b'PK\x03\x04\x00\x01' * 50, 'truncated'),
            (b'\x80\x02}q\x00', 'truncated'),
        ],
    )
    def test_other_files_are_a_user_error(self, tmp_path, content, message):
        path = tmp_path / 'model.pth'
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            files.read(path)
        assert '\n' not in str(error.value)

    @pytest.mark.parametrize('part', [0.2, 0.7, 0.999])
    def test_a_truncated_file_is_a_user_error(self, source, part):
        whole = source.read_bytes()
        source.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(UserError, match='or truncated'):
            files.read(source)

    def test_safetensors_are_read_and_damage_is_a_user_error(self, tmp_path):
        from safetensors.torch import save_file

        path, weights = tmp_path / 'model.safetensors', {key: v.contiguous() for key, v in kit.cheap(TIMM).items()}
        save_file(weights, path)
        read = files.read(path)
        assert all(torch.equal(read[key], weights[key]) for key in weights)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(UserError, match='not a safetensors file, or damaged'):
            files.read(path)

    def test_a_folder_and_a_missing_file_are_user_errors(self, tmp_path):
        with pytest.raises(UserError, match='is a folder'):
            files.read(tmp_path)
        with pytest.raises(UserError, match='does not exist'):
            files.read(tmp_path / 'no.pth')


class TestWriting:
    def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(self, tmp_path, monkeypatch):
        def full(content, path):
            path.write_bytes(b'half')
            raise OSError(28, 'No space left on device')

        target = save({'old': 1}, tmp_path / 'target.pth')
        monkeypatch.setattr(torch, 'save', full)
        with pytest.raises(UserError, match='the disk is full'):
            files.write(target, {}, force=True)
        assert [path.name for path in tmp_path.iterdir()] == ['target.pth']
        assert torch.load(target) == {'old': 1}

    def test_an_existing_file_is_not_overwritten_without_force(self, tmp_path):
        target = save({'old': 1}, tmp_path / 'target.pth')
        with pytest.raises(UserError, match=r'target\.pth exists; .* --force'):
            files.write(target, {})
        with pytest.raises(UserError, match='is a folder'):
            files.write(tmp_path, {}, force=True)
        files.write(target, {'new': 2}, force=True)
        assert torch.load(target) == {'new': 2}

    def test_a_folder_without_permission_is_a_user_error(self, tmp_path, monkeypatch):
        (tmp_path / 'file').write_text('')
        with pytest.raises(UserError, match=r'cannot be written: .*file is not a folder.*; use another folder'):
            files.write(tmp_path / 'file' / 'target.pth', {})
        monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
        with pytest.raises(UserError, match=r'cannot be written: .*no permission; use another folder'):
            files.write(tmp_path / 'new' / 'target.pth', {})
        assert not (tmp_path / 'new').exists()

    def test_a_view_is_saved_without_the_rest_of_its_storage(self, tmp_path):
        files.write(tmp_path / 'a.pth', {'state_dict': {'x': torch.rand(1_000_000)[:4]}})
        assert (tmp_path / 'a.pth').stat().st_size < 10_000


class TestTool:
    def test_a_converted_file_loads_into_a_backbone(self, source, tmp_path, capsys):
        target = tmp_path / 'new' / 'evit_m0.pth'
        assert run(source, target) == 0
        said = capsys.readouterr().out
        for line in ('EfficientViTMSRA m0', '686 tensors', '7 tensors: classification head', "arch='m0'"):
            assert line in said
        content = torch.load(target)  # plain tensors and values: no allow-list needed
        report = content['meta']['report']
        assert json.loads(json.dumps(content['meta'])) == content['meta']
        assert report['sha256'] == files.sha256(source)
        assert (report['loaded'], report['left_over'], len(report['resized'])) == (686, 0, 3)
        assert [feature['shape'] for feature in report['proof']] == [[1, 64, 14, 14], [1, 128, 7, 7], [1, 192, 4, 4]]
        backbone = MODELS.build(content['meta']['backbone'])
        load_checkpoint(backbone, str(target), strict=True)  # mmengine's own way
        assert torch.equal(backbone.stem[0].conv.weight, kit.measured(AUTHORS)['patch_embed.0.c.weight'])

    def test_files_convert_back_bit_by_bit(self, source, tmp_path):
        assert run(source, tmp_path / 'a.pth') == 0
        assert run(tmp_path / 'a.pth', tmp_path / 'timm.safetensors', '--to', 'timm', '--arch', 'm0') == 0
        assert files.read(tmp_path / 'timm.safetensors').keys() == kit.cheap(TIMM).keys()
        body = {f'backbone.{key}': value for key, value in kit.measured(DENSE).items()}
        dense = save({'state_dict': body}, tmp_path / 'dense.pth')
        assert run(dense, tmp_path / 'b.pth') == 0
        assert run(tmp_path / 'b.pth', tmp_path / 'back.pth', '--to', 'original') == 0
        back = torch.load(tmp_path / 'back.pth')['model']
        assert all(torch.equal(back[key], value) for key, value in kit.measured(DENSE).items())

    def test_whole_includes_neck_and_heads(self, tmp_path):
        body = {f'backbone.{key}': value for key, value in kit.measured(DENSE).items()}
        path = save({'state_dict': {**body, 'neck.x': torch.rand(2)}}, tmp_path / 'detector.pth')
        assert run(path, tmp_path / 'whole.pth', '--whole') == 0
        keys = set(torch.load(tmp_path / 'whole.pth')['state_dict'])
        assert keys == {f'backbone.{key}' for key in convert(body).state_dict} | {'neck.x'}

    def test_verify_prints_class_names(self, source, tmp_path, capsys):
        import cv2

        images, labels = tmp_path / 'images', tmp_path / 'labels.txt'
        images.mkdir()
        assert run(source, tmp_path / 'a.pth', '--verify', images) == 2
        cv2.imwrite(str(images / 'dog.png'), np.full((300, 240, 3), 90, np.uint8))
        labels.write_text('\n'.join(['dog'] * 1000))
        assert run(source, tmp_path / 'a.pth', '--verify', images, '--labels', labels) == 0
        assert 'dog.png' in (said := capsys.readouterr().out)
        assert ' dog ' in said
        assert verify._read(images / 'dog.png', 64).shape == (1, 3, 64, 64)
        with pytest.raises(SystemExit):
            run(source, tmp_path / 'a.pth', '--verify', images, '--size', '9')
        assert '9: allowed are 32 to 2048 pixels' in capsys.readouterr().err
        labels.write_text('dog')
        assert run(source, tmp_path / 'b.pth', '--verify', images, '--labels', labels) == 2
        assert '1 names, but the head has 1000 classes' in capsys.readouterr().err
        assert not (tmp_path / 'b.pth').exists()

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['--arch', 'm1'], 'not of m1'),
            (['--arch', 'x9'], "unknown arch 'x9'"),
            (['--ema'], 'no moving average'),
            (['--whole'], 'no neck and heads'),
            (['--whole', '--to', 'timm'], 'cannot be combined with --to timm'),
            (['--verify', 'nowhere'], 'folder not found'),
        ],
    )
    def test_wrong_arguments_print_one_message_and_return_2(self, source, tmp_path, capsys, arguments, message):
        assert run(source, tmp_path / 'a.pth', *arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert 'Traceback' not in said
        assert not (tmp_path / 'a.pth').exists()

    def test_the_error_names_the_file_and_the_unknown_key(self, tmp_path, capsys):
        weights = kit.cheap(TIMM)
        weights['oops'] = weights.pop('head.linear.bias')
        path = save(weights, tmp_path / 'broken.pth')
        assert run(path, tmp_path / 'a.pth') == 2
        said = capsys.readouterr().err
        assert str(path) in said
        assert '1 unknown:\n    oops' in said


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / 'bare.pth'
    path.write_bytes(pickle.dumps({'hook': RunsCode(tmp_path / 'trace')}))
    with pytest.raises(UserError):
        files.read(path)
    assert not (tmp_path / 'trace').exists()


def test_reading_restores_the_allowed_globals(tmp_path):
    from mmplugin.convert.checkpoint_io import _read_torch, allowed_globals

    torch.save({'weight': torch.zeros(1)}, tmp_path / 'file.pth')
    torch.serialization.add_safe_globals(allowed_globals())
    _read_torch(tmp_path / 'file.pth', trust=False)
    assert all(item in torch.serialization.get_safe_globals() for item in allowed_globals())
