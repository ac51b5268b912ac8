"""README and documentation: commands parse, and every config, path and link that they name exists."""

import contextlib
import io
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from mmplugin import cli, paths
from mmplugin.backbones import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
TOOLS = {'convert_weights': 'convert', 'check_data': 'check-data'}  # script: command, where the names differ
SCRIPTS = {'pretraining_proof', 'search_proof'}  # without a command
FOLDERS = ('configs', 'docs', 'mmplugin', 'tests', 'tools')
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> list[str]:
    return re.findall(r'^```\w*\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)


def inline_code(page: Path) -> list[str]:
    prose = re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.M | re.S)
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose)]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the command and the arguments of each ``mmplugin ...`` and ``python tools/...`` on a page."""
    lines = [line.removeprefix('$ ') for block in blocks(page) for line in block.replace('\\\n', ' ').splitlines()]
    found = []
    for line in [*lines, *inline_code(page)]:
        if re.match(r'mmplugin [a-z]', line):
            name, *arguments = shlex.split(line, comments=True)[1:]
        elif re.match(r'python tools/', line):
            script, *arguments = shlex.split(line, comments=True)[1:]
            assert (ROOT / script).is_file(), f'{script} does not exist'
            if Path(script).stem in SCRIPTS:
                continue
            name = TOOLS.get(Path(script).stem, Path(script).stem)
        else:
            continue
        found.append((name, arguments))
    return found


@cache
def flags(command: str) -> set[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        cli.main([command, '--help'])
    return set(re.findall(r'--[\w-]+', text.getvalue()))


@each_page
def test_every_command_exists_with_its_options(page):
    for name, arguments in commands(page):
        assert name in cli.COMMANDS
        used = {argument.partition('=')[0] for argument in arguments if argument.startswith('--')}
        assert used <= flags(name), f'{name} has no {sorted(used - flags(name))}'


@each_page
def test_every_config_that_a_command_names_exists(page):
    archs = {f'{family}_{arch}' for family, cls in FAMILIES.items() for arch in cls.ARCHS}
    known = {*paths.config_names(), *archs, *FAMILIES, 'all'}
    for name, arguments in commands(page):
        if name not in ('train', 'test', 'check-data', 'benchmark') or not arguments:
            continue
        count = len(arguments) if name == 'benchmark' else 1
        for config in arguments[:count]:
            if config.startswith('--'):
                break
            written = f'Save this as `{config}`' in page.read_text()  # the next code on the page
            if not config.isupper() and config not in known and not written:  # CONFIG, NAME: the reader's
                assert paths.find_config(config)


def test_the_pages_name_every_command():
    assert {name for page in PAGES for name, _ in commands(page)} >= set(cli.COMMANDS)


@each_page
def test_every_make_target_exists(page):
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M))
    lines = [line for block in blocks(page) for line in block.splitlines()]
    for line in [*lines, *inline_code(page)]:
        for words in re.findall(r'(?:^|\s)make ((?:[a-z-]+(?: |$))+)', line.split('#')[0].rstrip()):
            assert set(words.split()) <= targets, f'{line}: the Makefile has {sorted(targets)}'


@each_page
def test_every_path_of_the_repository_exists(page):
    for code in inline_code(page):
        path = code.split('::')[0].rstrip('/')
        if re.fullmatch(rf'({"|".join(FOLDERS)})/[\w./-]+', path) and not re.search(r'\b[A-Z]{3,}\b|/\.mim', path):
            assert (ROOT / path).exists(), f'{path} does not exist'


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
        if '://' in target:
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f'{target} does not exist'
        if anchor:
            headings = re.findall(r'^#+ (.+)$', file.read_text(encoding='utf-8'), re.M)
            slugs = {re.sub(r'[^\w -]', '', heading).strip().lower().replace(' ', '-') for heading in headings}
            assert anchor in slugs, f'{target}: the headings are {sorted(slugs)}'


def test_the_model_zoo_is_written_from_the_current_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'docs/scripts')
    model_zoo, markers = import_module('model_zoo'), import_module('markers')
    assert markers.read_between(model_zoo.PAGE, 'comparison') == model_zoo.comparison()
    assert markers.read_between(model_zoo.PAGE, 'feature maps') == model_zoo.feature_maps()


def test_images_are_small_enough_for_a_clone():
    large = [image.name for image in (ROOT / 'docs/images').iterdir() if image.stat().st_size > 300_000]
    assert large == []
