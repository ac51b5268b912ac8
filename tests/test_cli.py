"""The menu, the exit codes, the tools, and configs found by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmplugin import cli, paths, stack
from mmplugin.errors import UserError

ROOT = Path(__file__).parents[1]
TOOLS = {
    'train': 'train',
    'test': 'test',
    'convert_weights': 'convert',
    'check_data': 'check-data',
    'benchmark': 'benchmark',
}


@pytest.fixture
def command(monkeypatch):
    """Put a function in place of a subcommand."""

    def replace(function):
        monkeypatch.setattr(cli, '_load', lambda name: function)

    return replace


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']])
def test_help_is_a_menu(argv, capsys):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith('  mmplugin ')] == list(cli.COMMANDS)
    assert max(map(len, text.splitlines())) <= 120


def test_the_arguments_arrive_and_the_exit_code_comes_back(command):
    seen = []
    command(lambda argv: seen.append((sys.argv, argv)) or 3)
    before = sys.argv
    assert cli.main(['train', 'x', '--mini']) == 3
    assert seen == [(['mmplugin train', 'x', '--mini'], ['x', '--mini'])]
    assert sys.argv is before
    command(lambda argv: None)
    assert cli.main(['train']) == 0


def raising(error):
    def function(argv):
        raise error

    return function


def test_what_the_user_can_mend_is_one_message_and_2(command, capsys):
    command(raising(UserError('no such config')))
    assert cli.main(['train', 'x']) == 2
    assert capsys.readouterr() == ('', 'mmplugin train: no such config\n')


def test_ctrl_c_is_130(command):
    command(raising(KeyboardInterrupt()))
    assert cli.main(['train']) == 130


def test_a_bug_keeps_its_traceback(command):
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(['train'])


def test_an_unknown_command_lists_the_known(capsys):
    assert cli.main(['tarin']) == 2
    assert "no command 'tarin', only train, test, convert" in capsys.readouterr().err


def test_a_broken_environment_stops_every_command_but_the_doctor(monkeypatch, capsys):
    monkeypatch.setattr(stack, 'IMPORT_ERROR', ImportError("No module named 'mmcv'"))
    assert cli.main(['train', 'x']) == 2
    assert "No module named 'mmcv'. See `mmplugin doctor`" in capsys.readouterr().err
    assert cli._load('doctor')


@pytest.mark.parametrize('name', list(cli.COMMANDS))
def test_every_command_exists_and_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, '--help'])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: mmplugin {name} ')


@pytest.mark.parametrize('file', TOOLS)
def test_a_tool_explains_itself_by_the_name_it_was_called(file, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools' / f'{file}.py'), '--help'])
    with pytest.raises(SystemExit):
        cli.main([TOOLS[file], '--help'])
    assert capsys.readouterr().out.startswith(f'usage: {file}.py ')


@pytest.mark.parametrize('name', ['train', 'test', 'check-data'])
def test_a_setting_without_a_value_is_one_message_and_2(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, 'maskrcnn_v2_s2', '--cfg-options', 'max_epochs'])
    assert stop.value.code == 2
    assert "--cfg-options: 'max_epochs' is no key=value" in capsys.readouterr().err


def test_python_m_mmplugin_is_the_menu_even_where_nothing_is_installed():
    # -S: no site-packages. -s: none of the user's.
    for words, code, message in [([], 0, '  mmplugin doctor '), (['train', 'x'], 2, 'See `mmplugin doctor`')]:
        run = subprocess.run(
            [sys.executable, '-S', '-s', '-m', 'mmplugin', *words],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert run.returncode == code
        assert message in run.stdout + run.stderr


def test_the_tools_are_the_same_lines_for_every_command():
    texts = set()
    for file, name in TOOLS.items():
        text = (ROOT / 'tools' / f'{file}.py').read_text()
        assert f"main(['{name}', *sys.argv[1:]])" in text
        texts.add(text.partition('import importlib')[2].replace(f"'{name}'", ''))
    assert len(texts) == 1


def test_a_tool_runs_from_anywhere_without_being_installed(tmp_path):
    # -P and an empty PYTHONPATH: only the tool itself can bring the clone in, unless it is installed.
    run = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', 'no_such_config'],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': ''},
    )
    assert run.returncode == 2
    assert run.stderr.startswith("mmplugin train: There is no config 'no_such_config'"), run.stderr


@pytest.mark.parametrize('name', [
    'maskrcnn_v2_s2', 'maskrcnn_v2_s2.py', 'detection/maskrcnn_v2_s2', 'configs/detection/maskrcnn_v2_s2.py',
])
def test_a_config_is_found_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.find_config(name) == ROOT / 'configs/detection/maskrcnn_v2_s2.py'


def test_a_file_wins_over_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'maskrcnn_v2_s2.py').touch()
    assert paths.find_config('maskrcnn_v2_s2.py').resolve() == tmp_path / 'maskrcnn_v2_s2.py'


@pytest.mark.parametrize('name', ['maskrcnn_v2_s3', 'segmentation/maskrcnn_v2_s2', 'coco', '.', ''])
def test_a_config_that_is_not_there(name):
    with pytest.raises(UserError, match='neither a file nor the name of one'):
        paths.find_config(name)


def test_close_names_are_offered():
    with pytest.raises(UserError, match=r'Close to it: .*maskrcnn_v2_s2'):
        paths.find_config('maskrcn_v2_s2.py')


def test_a_name_like_none_is_told_how_names_are_made():
    with pytest.raises(UserError) as caught:
        paths.find_config('nonsense')
    _, _, scheme = str(caught.value).partition('Names are HEAD_FAMILY_ARCH.')
    assert 'Heads: maskrcnn, retinanet, semfpn.' in scheme
    for backbone in ('v1_l1', 'v2_l', 'v2_s2', 'evit_m5'):
        assert f' {backbone}' in scheme
        assert f'maskrcnn_{backbone}' not in scheme


def test_every_config_is_listed_once():
    names = paths.config_names()
    assert len(names) == len(set(names)) == 39
