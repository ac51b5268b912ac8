"""``--cfg-options key=value``: keys that the config or one of its classes knows; ``+key=value`` adds others."""

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config, DictAction

from mmplugin.backbones import FAMILIES
from mmplugin.config_edits import import_scope, scope_of
from mmplugin.errors import UserError
from mmplugin.registration import PARTS

ADD = '+'
DELETE = '_delete_'
REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
# Keys that mmengine reads from the config or takes out of a dict before it builds the class.
READ_BY_ENGINE = {
    '': ('find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'compile', 'activation_checkpointing'),
    'optim_wrapper': ('constructor', 'paramwise_cfg'),
    'train_dataloader': ('dataset', 'sampler', 'batch_sampler', 'worker_init_fn'),
}
READ_BY_ENGINE['val_dataloader'] = READ_BY_ENGINE['test_dataloader'] = READ_BY_ENGINE['train_dataloader']
NEAREST = 4  # names to suggest


class CfgOptions(DictAction):
    """mmengine's ``key=value ...``, with a message instead of a traceback for a word without ``=``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Parse the words of the option."""
        for value in values:
            if '=' not in value:
                parser.error(f"{option_string}: '{value}' is not key=value, such as train_dataloader.batch_size=4")
        super().__call__(parser, namespace, values, option_string)


def merge_cfg_options_(cfg: Config, options: dict[str, Any], path: Path) -> None:
    """Set values in a config.

    Args:
        cfg: The config.
        options: Values by dotted key. A key that starts with ``+`` may be new.
        path: File of the config, for messages.
    """
    for key in options:
        if not key.startswith(ADD):
            _require_known(cfg, key)
    try:
        cfg.merge_from_dict({key.removeprefix(ADD): value for key, value in options.items()})
    except (KeyError, TypeError) as error:
        raise UserError(f'--cfg-options does not fit {path}: {error.args[0]}') from error


def _require_known(cfg: Config, key: str) -> None:
    node: Any = cfg._cfg_dict
    parts = key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, list | tuple) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        elif not isinstance(node, dict):
            return  # None can become a dict; mmengine refuses the rest
        elif part == DELETE or part in known_arguments(cfg, node, '.'.join(parts[:depth])):
            return
        else:
            raise UserError(_message(cfg, key, node, parts, depth))


def _message(cfg: Config, key: str, node: dict, parts: list[str], depth: int) -> str:
    parent, missing = '.'.join(parts[:depth]), parts[depth]
    prefix = f'{parent}.' if parent else ''
    siblings = {*node, *known_arguments(cfg, node, parent)}
    near = [prefix + name for name in get_close_matches(missing, siblings, NEAREST)]
    everywhere = list(dict.fromkeys(_keys(cfg._cfg_dict)))
    near += [name for name in everywhere if name.rpartition('.')[2] == parts[-1]]
    near += get_close_matches(key, everywhere, NEAREST)
    nearest = ', '.join(list(dict.fromkeys(near))[:NEAREST])
    return (
        f'--cfg-options: the config has no {prefix}{missing}'
        + (f'; the nearest names are {nearest}' if nearest else '')
        + f'. To add a new key: {ADD}{key}=...'
    )


def _keys(node: Any, prefix: str = '') -> Iterator[str]:
    """Yield the dotted keys of a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield f'{prefix}{key}'
        yield from _keys(value, f'{prefix}{key}.')


def known_arguments(cfg: Config, node: dict, path: str) -> set[str]:
    """Return the arguments of what a dict of the config builds, apart from its ``type``."""
    from mmengine.runner import Runner  # takes a second
    from torch.utils.data import DataLoader

    callables: dict[str, Callable] = {'': Runner.__init__, 'randomness': Runner.set_randomness}
    callables |= dict.fromkeys(('train_dataloader', 'val_dataloader', 'test_dataloader'), DataLoader.__init__)
    names = set(READ_BY_ENGINE.get(path, ()))
    if path in callables:
        names |= set(inspect.signature(callables[path]).parameters)
    elif isinstance(node.get('type'), str):
        names |= _constructor_arguments(_find_class(cfg, node['type']))
    return names - {'self', 'cfg'}


def _find_class(cfg: Config, name: str) -> Any:
    """Return the class or function that is registered under a name, or None."""
    if found := {cls.__name__: cls for cls in FAMILIES.values()}.get(name):
        return found
    for modules in PARTS.values():  # these are registered as functions that import the class
        if name in modules:
            return getattr(import_module(modules[name]), name, None)
    for module in ('models', 'datasets', 'evaluation', 'visualization', 'engine.hooks'):
        import_scope(cfg, module)
    with registry.DefaultScope.overwrite_default_scope(cfg.get('default_scope', scope_of(cfg))):
        for place in REGISTRIES:
            with place.switch_scope_and_registry(None) as scoped:
                if (found := scoped.get(name)) is not None:
                    return found
    return None


def _constructor_arguments(found: Any) -> set[str]:
    """Return the names that a class or function takes, through ``**kwargs`` to the parents, but no further."""
    if not isinstance(found, type):
        return set(inspect.signature(found).parameters) - {'kwargs'} if callable(found) else set()
    names: set[str] = set()
    for parent in found.__mro__:
        if '__init__' in vars(parent) and parent is not object:
            parameters = inspect.signature(vars(parent)['__init__']).parameters.values()
            names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
    return names
