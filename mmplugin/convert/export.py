"""Export of converted weights to files that timm or the authors' code load strictly."""

from typing import Any

import torch
from torch import Tensor

from mmplugin.errors import UserError

from . import bias_tables, formats
from .classifier import MODULES
from .conversion import Result

PRETRAINING_WINDOWS = (7, 7, 4)  # sides of EfficientViT's windows at 224 px, stage by stage


def export(result: Result, origin: str) -> tuple[dict[str, Tensor], list[str]]:
    """Convert weights to the format of another project.

    Args:
        result: Return value of ``convert``.
        origin: 'timm' or 'original'. Weights of the authors' dense code are exported to the dense code.

    Returns:
        The state dict, and notes on tensors that differ from the source.
    """
    backbone, family = result.backbone, result.family
    upstream = backbone.get('attention_bias') == 'upstream'
    form = formats.get(formats.DENSE if upstream and origin == formats.ORIGINAL else origin, family)
    _check(result, form)
    known = formats.Recognized(form, backbone['arch'], {}, len(formats.FAMILIES[family].STRIDES))
    rename = known.rename
    notes: list[str] = []
    shrunk: list[str] = []
    content: dict[str, Tensor] = {}
    for key, value in {**result.state_dict, **result.head}.items():
        if key.endswith('.table') and family == 'evit' and result.head:
            value = _shrink_table(key, value, shrunk)
        theirs = rename(key)
        content[theirs] = value.reshape(form.shape(key, value.shape))
        if key.endswith('.table'):
            _add_index_table(content, theirs, value, key, form)
    if shrunk:
        notes.append(
            f'{len(shrunk)} bias tables were resized back to their pretraining size by least squares: '
            f'equal up to rounding, not bit by bit'
        )
    if form.dense:
        content.update(_imagenet_tables(result, known, notes))
    return content, notes


def _check(result: Result, form: formats.Format) -> None:
    backbone = result.backbone
    if 'out_indices' in backbone:
        raise UserError(f'--to {form.origin}: stages or norms are missing ({backbone}); use a file with all of them')
    if form.dense:
        return
    if backbone.get('attention_bias') == 'upstream':
        raise UserError(
            "--to timm: these bias tables belong to the authors' dense code, which timm does not support; "
            'use --to original'
        )
    if backbone.get('out_norm'):
        raise UserError(
            f'--to {form.origin}: the norms of the feature maps (out_norm) are not supported; use other weights'
        )
    headless = not any(key.startswith(MODULES[1:]) for key in result.head)
    # Microsoft's dense code is the classification network without its head.
    if headless and not (form.origin == formats.ORIGINAL and result.family == 'evit'):
        raise UserError(
            f'--to {form.origin}: the file has no classification head, which this format requires; '
            'convert a classification checkpoint instead'
        )


def _shrink_table(key: str, table: Tensor, shrunk: list[str]) -> Tensor:
    """Resize a table to the window of its stage at 224 px, as in a classifier, and add its key to ``shrunk``."""
    side = PRETRAINING_WINDOWS[int(key.split('.')[1])]
    if table.shape[1] <= side**2:
        return table
    shrunk.append(key)
    return bias_tables.shrink(table, side)


def _add_index_table(content: dict[str, Tensor], theirs: str, table: Tensor, key: str, form: formats.Format) -> None:
    if form.index_tables:
        name = theirs.replace('attention_biases', 'attention_bias_idxs')
        content[name] = bias_tables.index_table(table.shape[1], 2 if '.downsample.' in key else 1)


def _imagenet_tables(result: Result, known: formats.Recognized, notes: list[str]) -> dict[str, Tensor]:
    """Return the tables that the dense code stores but does not use: those of the source, or zeros."""
    plain = formats.get(formats.ORIGINAL, result.family)
    rename = plain.rename(known.settings)
    content: dict[str, Tensor] = {}
    missing = 0
    for key in (key for key in result.state_dict if key.endswith('.table')):
        table = result.imagenet_tables.get(key)
        if table is None:
            missing += 1
            table = torch.zeros(result.state_dict[key].shape[0], 196 if '.downsample.' in key else 49)
        theirs = rename(key)
        content[theirs] = table
        _add_index_table(content, theirs, table, key, plain)
    if missing:
        notes.append(f'{missing} ImageNet bias tables, which the dense code does not use, are zero: the file has none')
    return content


def wrap(content: dict[str, Tensor], origin: str) -> dict[str, Any]:
    """Wrap a state dict as the project publishes it: timm without wrapper, the authors under ``model``."""
    return {'model': content} if origin == formats.ORIGINAL else content
