"""Folders that cannot be written to are noticed before anything else is done, by every option that names one."""

import os
from pathlib import Path

import pytest

from mmplugin.cli import main
from mmplugin.engine.processes import restarted_by_torchrun
from mmplugin.engine.resume import find_last_checkpoint
from mmplugin.engine.work_dir import mark_start, prepare_folder, remove_drafts, saved_since_start
from mmplugin.errors import UserError

pytestmark = pytest.mark.usefixtures('tiny_sets')


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize('inside', ['', 'x', 'x/y'])
def test_a_file_in_place_of_a_folder_is_one_message(inside: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / 'file').touch()
    (tmp_path / 'a.pth').touch()
    folder = tmp_path / 'file' / inside
    train = ['train', 'retinanet_evit_m0', '--mini']
    test = ['test', 'retinanet_evit_m0', tmp_path / 'a.pth', '--mini']
    for command, option in ((train, '--work-dir'), (test, '--work-dir'), (test, '--show-dir')):
        place = [] if option == '--work-dir' else ['--work-dir', tmp_path / 'work']
        assert _run(*command, *place, option, folder) == 2
        message = f'{option} {folder} cannot be written to: there is a file in place of a folder'
        assert message in capsys.readouterr().err
    assert _run(*test, '--work-dir', tmp_path / 'work', '--out', folder / 'a.pkl') == 2
    assert 'a.pkl cannot be written' in capsys.readouterr().err


def test_a_read_only_folder_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read_only(path: Path, data: bytes) -> int:
        raise OSError(30, 'Read-only file system', str(path))  # root may write into any other folder

    monkeypatch.setattr(Path, 'write_bytes', read_only)
    with pytest.raises(UserError, match=r'--work-dir .*run cannot be written to: Read-only file system; choose'):
        prepare_folder(tmp_path / 'run')


def test_too_little_space_is_a_message(tmp_path: Path):
    with pytest.raises(UserError, match=r'MB are free, but one checkpoint takes about 1000000000000 MB'):
        prepare_folder(tmp_path, bytes_needed=10**18)
    assert list(prepare_folder(tmp_path, bytes_needed=1).iterdir()) == []


def test_only_drafts_of_dead_processes_are_removed(tmp_path: Path):
    names = ['.epoch_1.pth.999999999.part', f'.epoch_1.pth.{os.getpid()}.part', '.mine.part', 'epoch_1.pth']
    for name in names:
        (tmp_path / name).touch()
    assert remove_drafts(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_restart_continues_only_what_this_training_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not saved_since_start(tmp_path)
    (tmp_path / 'epoch_12.pth').touch()
    os.utime(tmp_path / 'epoch_12.pth', (1, 1))
    mark_start(tmp_path)
    assert not saved_since_start(tmp_path), 'epoch_12.pth belongs to an earlier training'
    (tmp_path / 'epoch_1.pth').touch()
    os.utime(tmp_path / 'epoch_1.pth', (1e11, 1e11))
    assert saved_since_start(tmp_path)
    assert not restarted_by_torchrun()
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert restarted_by_torchrun()


@pytest.mark.parametrize(
    ('launcher', 'variable', 'start'), [('pytorch', 'RANK', 'torchrun'), ('slurm', 'SLURM_PROCID', 'srun')]
)
def test_a_launcher_without_its_variables_is_one_message(
    launcher: str, variable: str, start: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(variable, raising=False)
    assert _run('train', 'retinanet_evit_m0', '--mini', '--launcher', launcher) == 2
    said = capsys.readouterr().err
    assert f'--launcher {launcher}: the environment lacks {variable}' in said
    assert f'start the command with {start}' in said


def test_ctrl_c_inside_a_library_that_hides_it_is_still_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
):
    """mmengine turns every error while it formats a config into a SyntaxError that contains the whole config."""

    def interrupted(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    imported = 'mmengine.config.config.FormatCode'  # in the stock stack; OneDL imports it when it formats
    monkeypatch.setattr(imported, interrupted, raising=False)
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', interrupted)
    assert _run('train', 'retinanet_evit_m0', '--mini', '--no-check', '--work-dir', tmp_path) == 130
    assert capsys.readouterr().err.endswith('\nStopped.\n')


def test_missing_weights_are_mentioned_only_if_training_starts_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    monkeypatch.setattr('mmplugin.engine.initial_weights.print_log', lambda text, logger: said.append(text))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pth').touch()
    monkeypatch.setattr('mmplugin.engine.train.run', lambda cfg, options: None)
    train = ['train', 'retinanet_evit_m0', '--mini', '--no-check', '--work-dir', 'run']
    for arguments, mentioned in (
        (train, True),
        ([*train, '--resume', 'a.pth'], False),
        ([*train, '--cfg-options', 'load_from=a.pth'], False),
        (['test', 'retinanet_evit_m0', 'a.pth', '--mini'], False),
    ):
        said.clear()
        _run(*arguments)
        assert ['the backbone is randomly initialized' in text for text in said] == [True] * mentioned


def test_a_folder_named_like_a_checkpoint_is_named(tmp_path: Path):
    (tmp_path / 'epoch_99.pth').mkdir()
    with pytest.raises(UserError, match=r'epoch_99\.pth is a folder.*No training was started; train without --resume'):
        find_last_checkpoint(tmp_path)
