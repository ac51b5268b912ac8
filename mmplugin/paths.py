"""Where configs lie, in a clone and in a wheel, and how a config is found by its name."""

from difflib import get_close_matches
from pathlib import Path

from mmplugin.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def configs_root() -> Path:
    """Return the folder of the configs: ``mmplugin/.mim/configs`` in a wheel, ``configs`` in a clone."""
    for root in (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'):
        if (root / '_base_').is_dir():
            return root
    raise UserError(
        f"mmplugin's configs are neither in {PACKAGE / '.mim/configs'} nor in {PACKAGE.parent / 'configs'}. "
        'Install mmplugin again, from a wheel or as an editable clone.'
    )


def _configs() -> list[Path]:
    """List the configs that can be trained: everything but what others build on."""
    root = configs_root()
    return sorted(path for path in root.rglob('*.py') if '_base_' not in path.relative_to(root).parts)


def config_names() -> list[str]:
    """List the names of our configs, without folder and ``.py``; what they are compared with is found, not listed."""
    return sorted(path.stem for path in _configs() if path.parent.name != 'comparison')


def find_config(name: str | Path) -> Path:
    """Find a config by path or by name.

    Args:
        name: A path, or the name of one of mmplugin's configs with or without folder and ``.py``. An existing path
            wins over a name.

    Raises:
        UserError: Nothing of that name exists; the message lists the closest names, or says how names are made.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    # A name may have folders: `detection/x`, or `configs/detection/x.py` as it is typed in a clone.
    parts = (*path.parts[:-1], f'{path.name.removesuffix(".py")}.py')
    root = configs_root()
    for config in _configs():
        if (root.name, *config.relative_to(root).parts)[-len(parts):] == parts:
            return config
    names = config_names()
    close = get_close_matches(path.stem, names, n=4)
    hint = f'Close to it: {", ".join(close)}.' if close else _scheme(names)
    raise UserError(f"There is no config '{name}': neither a file nor the name of one in {root}. {hint}")


def _scheme(names: list[str]) -> str:
    heads, _, backbones = zip(*(name.partition('_') for name in names), strict=True)
    heads, backbones = (', '.join(sorted(set(words))) for words in (heads, backbones))
    return f'Names are HEAD_FAMILY_ARCH. Heads: {heads}. Families and archs: {backbones}.'
