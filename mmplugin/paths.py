"""Location of the configs, in a clone and in a wheel, and lookup of a config by name."""

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
        f"mmplugin's configs are missing: neither {PACKAGE / '.mim/configs'} nor {PACKAGE.parent / 'configs'} exists. "
        'Reinstall mmplugin, from a wheel or as an editable clone.'
    )


def _configs() -> list[Path]:
    """Return the configs that can be trained, i.e. all except the base configs."""
    root = configs_root()
    return sorted(path for path in root.rglob('*.py') if '_base_' not in path.relative_to(root).parts)


def config_names() -> list[str]:
    """Return the names of the configs for detection and segmentation, without the baselines to compare with."""
    return sorted(path.stem for path in _configs() if path.parent.name not in ('classification', 'comparison'))


def classification_names() -> list[str]:
    """Return the names of the configs for classification."""
    return sorted(path.stem for path in _configs() if path.parent.name == 'classification')


def find_config(name: str | Path) -> Path:
    """Find a config by path or by name.

    Args:
        name: A path, or the name of one of mmplugin's configs, with or without folder and ``.py``. A path that exists
            takes precedence over a name.

    Raises:
        UserError: If there is neither. The message lists similar names or explains the naming scheme.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    # A name may have folders: `detection/x`, or `configs/detection/x.py` as typed in a clone.
    parts = (*path.parts[:-1], f'{path.name.removesuffix(".py")}.py')
    root = configs_root()
    for config in _configs():
        if (root.name, *config.relative_to(root).parts)[-len(parts) :] == parts:
            return config
    names = config_names()
    close = get_close_matches(path.stem, [*names, *classification_names()], n=4)
    hint = f'Similar names: {", ".join(close)}.' if close else _scheme(names)
    raise UserError(f"Config '{name}' not found: it is neither a file nor the name of a config in {root}. {hint}")


def _scheme(names: list[str]) -> str:
    parts = [name.partition('_') for name in names]
    heads = ', '.join(sorted({head for head, _, _ in parts}))
    backbones = ', '.join(sorted({backbone for _, _, backbone in parts}))
    return (
        f'Names are HEAD_FAMILY_ARCH. Allowed heads: {heads}. Allowed families and archs: {backbones}. For '
        'classification: FAMILY_ARCH_imagenet.'
    )
