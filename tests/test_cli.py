"""The help, the exit codes, the tools, and the lookup of configs by name."""

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
    'predict': 'predict',
    'convert_weights': 'convert',
    'check_data': 'check-data',
    'benchmark': 'benchmark',
    'search': 'search',
    'export': 'export',
}


@pytest.fixture
def command(monkeypatch):
    """Replace the subcommands by a function."""

    def replace(function):
        monkeypatch.setattr(cli, '_load', lambda name: function)

    return replace


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']])
def test_help_lists_every_command(argv, capsys):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith('  mmplugin ')] == list(cli.COMMANDS)
    assert max(map(len, text.splitlines())) <= 120


def test_arguments_and_program_name_are_passed_and_the_exit_code_is_returned(command):
    calls = []
    command(lambda argv, prog: calls.append((argv, prog)) or 3)
    assert cli.main(['train', 'x', '--mini']) == 3
    assert calls == [(['x', '--mini'], 'mmplugin train')]
    command(lambda argv, prog: None)
    assert cli.main(['train']) == 0


def raising(error):
    def function(argv, prog):
        raise error

    return function


def test_a_user_error_prints_one_message_and_returns_2(command, capsys):
    command(raising(UserError('no such config')))
    assert cli.main(['train', 'x']) == 2
    assert capsys.readouterr() == ('', 'mmplugin train: no such config\n')


def test_ctrl_c_returns_130(command):
    command(raising(KeyboardInterrupt()))
    assert cli.main(['train']) == 130


def test_any_other_error_keeps_its_traceback(command):
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(['train'])


def test_an_unknown_command_lists_the_allowed_ones(capsys):
    assert cli.main(['tarin']) == 2
    assert capsys.readouterr().err.startswith("mmplugin: unknown command 'tarin'; allowed: train, test, predict")


def test_a_broken_environment_stops_every_command_but_the_doctor(monkeypatch, capsys):
    monkeypatch.setattr(stack, 'IMPORT_ERROR', ImportError("No module named 'mmcv'"))
    assert cli.main(['train', 'x']) == 2
    assert "No module named 'mmcv'. Run `mmplugin doctor`" in capsys.readouterr().err
    assert cli._load('doctor')


@pytest.mark.parametrize('name', list(cli.COMMANDS))
def test_every_command_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, '--help'])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: mmplugin {name} ')


@pytest.mark.parametrize('file', TOOLS)
def test_the_usage_of_a_tool_names_the_script(file, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools' / f'{file}.py'), '--help'])
    with pytest.raises(SystemExit):
        cli.main([TOOLS[file], '--help'])
    assert capsys.readouterr().out.startswith(f'usage: {file}.py ')
    assert sys.argv == [str(ROOT / 'tools' / f'{file}.py'), '--help']


@pytest.mark.parametrize('name', ['train', 'test', 'check-data'])
def test_a_cfg_option_without_a_value_returns_2(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, 'maskrcnn_v2_s2', '--cfg-options', 'max_epochs'])
    assert stop.value.code == 2
    assert "--cfg-options: 'max_epochs' is not key=value" in capsys.readouterr().err


def test_python_m_mmplugin_starts_without_installed_packages():
    # -S: no site-packages. -s: no user site-packages.
    for words, code, message in [([], 0, '  mmplugin doctor '), (['train', 'x'], 2, 'Run `mmplugin doctor`')]:
        run = subprocess.run(
            [sys.executable, '-S', '-s', '-m', 'mmplugin', *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert run.returncode == code
        assert message in run.stdout + run.stderr


def test_all_tools_have_the_same_code():
    texts = set()
    for file, name in TOOLS.items():
        text = (ROOT / 'tools' / f'{file}.py').read_text()
        assert f"main(['{name}', *sys.argv[1:]])" in text
        texts.add(text.partition('import importlib')[2].replace(f"'{name}'", ''))
    assert len(texts) == 1


def test_a_tool_runs_from_any_folder_without_installation(tmp_path):
    # PYTHONPATH is empty, so the tool has to find the clone itself, unless mmplugin is installed.
    run = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', 'no_such_config'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': ''},
    )
    assert run.returncode == 2
    assert run.stderr.startswith("train.py: Config 'no_such_config' not found"), run.stderr


@pytest.mark.parametrize(
    'name',
    [
        'maskrcnn_v2_s2',
        'maskrcnn_v2_s2.py',
        'detection/maskrcnn_v2_s2',
        'configs/detection/maskrcnn_v2_s2.py',
    ],
)
def test_a_config_is_found_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.find_config(name) == ROOT / 'configs/detection/maskrcnn_v2_s2.py'


def test_an_existing_file_takes_precedence_over_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'maskrcnn_v2_s2.py').touch()
    assert paths.find_config('maskrcnn_v2_s2.py').resolve() == tmp_path / 'maskrcnn_v2_s2.py'


@pytest.mark.parametrize('name', ['maskrcnn_v2_s3', 'segmentation/maskrcnn_v2_s2', 'coco', '.', ''])
def test_an_unknown_config_is_a_user_error(name):
    with pytest.raises(UserError, match='neither a file nor the name of a config'):
        paths.find_config(name)


def test_similar_names_are_suggested():
    with pytest.raises(UserError, match=r'Similar names: .*maskrcnn_v2_s2'):
        paths.find_config('maskrcn_v2_s2.py')


def test_the_naming_scheme_is_explained_if_no_name_is_similar():
    with pytest.raises(UserError) as caught:
        paths.find_config('nonsense')
    _, _, scheme = str(caught.value).partition('Names are HEAD_FAMILY_ARCH.')
    assert 'Allowed heads: maskrcnn, retinanet, semfpn.' in scheme
    for backbone in ('v1_l1', 'v2_l', 'v2_s2', 'evit_m5'):
        assert f' {backbone}' in scheme
        assert f'maskrcnn_{backbone}' not in scheme


def test_every_config_is_listed_once():
    names = paths.config_names()
    assert len(names) == len(set(names)) == 39
