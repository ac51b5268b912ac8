"""Older files stay as they were until newer ones are proven."""

import argparse
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mmplugin.deploy import command
from mmplugin.deploy.check import Proof
from mmplugin.deploy.drafts import draft
from mmplugin.deploy.metadata import Metadata
from mmplugin.errors import UserError

SUFFIXES = {'onnx': ('.onnx',), 'openvino': ('.xml', '.bin'), 'pt2': ('.pt2',)}


def exporter(kind, path, outcome):
    """Return a run of the command whose file has fixed bytes and whose proof is ``outcome``."""
    run = command.Exporter.__new__(command.Exporter)
    run.options = argparse.Namespace(format=kind, with_predictor=False, int8=False, checkpoint='')
    run.predictor = SimpleNamespace(model=None, classes=())
    run.choice, run.name, run.rule, run.path, run.console = None, 'x', {}, path, Console(file=io.StringIO())

    def prove(file, found):
        if isinstance(outcome, BaseException):
            raise outcome
        return Proof('a runtime', problems=outcome)

    run._prove = prove
    return run


@pytest.mark.parametrize('kind', list(SUFFIXES))
@pytest.mark.parametrize(
    ('outcome', 'error'),
    [(['3 of 5 objects differ'], UserError), (KeyboardInterrupt(), KeyboardInterrupt), ([], None)],
    ids=['a proof that fails', 'Ctrl-C', 'a proof'],
)
def test_an_older_file_stays_unless_the_new_one_is_proven(kind, outcome, error, tmp_path, monkeypatch):
    def write(program, found, kind, path):
        for suffix in SUFFIXES[kind]:
            path.with_suffix(suffix).write_bytes(b'new ' + suffix.encode())

    fields = dict(name='x', kind='features', size=(512, 512), dynamic=False, min_size=(1, 1), resize={})
    metadata = Metadata(input='tensor', **fields)
    monkeypatch.setattr(command, 'traceable', lambda *_: SimpleNamespace(metadata=metadata, outputs=()))
    monkeypatch.setattr(command.export, 'program_of', lambda found: None)
    monkeypatch.setattr(command.export, 'write', write)
    for name in ('open_file', 'Pt2'):
        monkeypatch.setattr(f'mmplugin.deploy.runtimes.{name}', lambda *_: None)
    files = [tmp_path / f'net-512x512{suffix}' for suffix in SUFFIXES[kind]]
    for file in files:
        file.write_bytes(b'old ' + file.suffix.encode())
    run = exporter(kind, files[0], outcome)
    if error is None:
        run.run()
    else:
        with pytest.raises(error):
            run.run()
    word = b'new ' if error is None else b'old '
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {
        file: word + file.suffix.encode() for file in files
    }


def test_a_folder_replaces_an_older_folder(tmp_path):
    target = tmp_path / 'net.mlpackage'
    for text in ('old', 'new'):
        with draft(target) as path:
            path.mkdir()
            (path / text).write_text(text)
    assert [file.name for file in tmp_path.rglob('*')] == ['net.mlpackage', 'new']
