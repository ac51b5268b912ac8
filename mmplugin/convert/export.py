"""The way back: our weights as files that timm or the authors' own code load strictly."""

from typing import Any

import torch
from torch import Tensor

from mmplugin.errors import UserError

from . import bias_tables, formats
from .classifier import MODULES
from .conversion import Result

PRETRAINING_WINDOWS = (7, 7, 4)  # sides of EfficientViT's windows at 224 px, stage by stage


def export(result: Result, origin: str) -> tuple[dict[str, Tensor], list[str]]:
    """Writes weights in the names of another project.

    Args:
        result: What ``convert`` returned.
        origin: 'timm' or 'original'. For the latter, weights of the authors' dense code go back to that.

    Returns:
        tuple: The state dict, and remarks on what is not the same as it was.
    """
    backbone, family = result.backbone, result.family
    upstream = backbone.get('attention_bias') == 'upstream'
    form = formats.get(formats.DENSE if upstream and origin == formats.ORIGINAL else origin, family)
    _check(result, form)
    known = formats.Recognised(form, backbone['arch'], {}, len(formats.FAMILIES[family].STRIDES))
    rename = known.rename
    remarks: list[str] = []
    shrunk: list[str] = []
    content: dict[str, Tensor] = {}
    for key, value in {**result.state_dict, **result.head}.items():
        if key.endswith('.table') and family == 'evit' and result.head:
            value = _shrink(key, value, shrunk)
        theirs = rename(key)
        content[theirs] = value.reshape(form.shape(key, value.shape))
        if key.endswith('.table'):
            _add_index_table(content, theirs, value, key, form)
    if shrunk:
        remarks.append(
            f'{len(shrunk)} bias tables are back at their pretraining size by the least-squares inverse of enlarging: '
            f'equal to rounding, not bit by bit'
        )
    if form.dense:
        content.update(_imagenet_tables(result, known, remarks))
    return content, remarks


def _check(result: Result, form: formats.Format) -> None:
    backbone = result.backbone
    if 'out_indices' in backbone:
        raise UserError(f'--to {form.origin}: stages or norms are missing ({backbone}); it needs all of them')
    if form.dense:
        return
    if backbone.get('attention_bias') == 'upstream':
        raise UserError(
            "--to timm: these bias tables belong to the authors' dense code, which timm does not have; "
            'use --to original'
        )
    if backbone.get('out_norm'):
        raise UserError(f'--to {form.origin}: weights with norms on the feature maps (out_norm) have no place there')
    headless = not any(key.startswith(MODULES[1:]) for key in result.head)
    # Microsoft's dense code is the same network without a head.
    if headless and not (form.origin == formats.ORIGINAL and result.family == 'evit'):
        raise UserError(
            f'--to {form.origin}: a classification head is needed there, and this file has none; convert the '
            f'classification checkpoint itself'
        )


def _shrink(key: str, table: Tensor, shrunk: list[str]) -> Tensor:
    """A classifier's table has the size of the window that the stage has at 224 px."""
    side = PRETRAINING_WINDOWS[int(key.split('.')[1])]
    if table.shape[1] <= side**2:
        return table
    shrunk.append(key)
    return bias_tables.shrink(table, side)


def _add_index_table(content: dict[str, Tensor], theirs: str, table: Tensor, key: str, form: formats.Format) -> None:
    if form.index_tables:
        name = theirs.replace('attention_biases', 'attention_bias_idxs')
        content[name] = bias_tables.index_table(table.shape[1], 2 if '.downsample.' in key else 1)


def _imagenet_tables(result: Result, known: formats.Recognised, remarks: list[str]) -> dict[str, Tensor]:
    """The tables that the dense code stores and ignores: those of the source, or zeros."""
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
        remarks.append(f'{missing} ImageNet bias tables, which the dense code ignores, are zero: the file had none')
    return content


def wrap(content: dict[str, Tensor], origin: str) -> dict[str, Any]:
    """As the project publishes its files: timm's are bare, the authors' have one entry."""
    return {'model': content} if origin == formats.ORIGINAL else content
