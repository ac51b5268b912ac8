"""Pretrained weights for a backbone that exists: everything fits, or training does not start."""

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from torch import nn

from mmplugin.backbones import DenseBackbone
from mmplugin.errors import UserError
from mmplugin.layers.attention_bias import OffsetBias, UpstreamBias

from . import checkpoint_io
from .conversion import Result, convert

NOT_BUILT, NORMS_NOT_BUILT = 'of stages above out_indices', 'norms of maps that are not returned'


def load_pretrained(
    backbone: DenseBackbone,
    checkpoint: str | Path,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    ema: bool = False,
    trust: bool = False,
) -> str:
    """Loads a file into ``backbone``: ours, or any published one that ``convert`` knows.

    Args:
        backbone: Is left as it was if anything does not fit.
        checkpoint: A path, or an http(s) address that is downloaded once.
        prefix: Take only names that start so; not needed for detectors, whose ``backbone.`` is found.
        map_location: Accepted as elsewhere in OpenMMLab; weights are read on the CPU and copied to the backbone.
        ema: Take the moving average of the weights.
        trust: Read files that hold more than tensors and plain values.

    Returns:
        str: One line that says what was loaded, as logged.
    """
    path = _local(checkpoint)
    arch = backbone.arch if isinstance(backbone.arch, dict) else None
    try:
        result = convert(checkpoint_io.read(path, trust), arch, ema=ema, prefix=prefix)
        line = _load(backbone, result)
    except UserError as error:
        raise UserError(f'Pretrained weights {checkpoint}: {error}') from error
    line = f'Pretrained weights {checkpoint}: {line}'
    print_log(line, logger='current')
    return line


def _load(backbone: DenseBackbone, result: Result) -> str:
    _check_kind(backbone, result)
    own, found = backbone.state_dict(), dict(result.state_dict)
    skipped: Counter = Counter()
    for key in list(found):
        if key in own:
            continue
        stage = int(key.split('.')[1]) if key.startswith('stages.') else -1
        if stage >= backbone.num_stages:
            skipped[NOT_BUILT] += 1
        elif key.startswith('out_norms.'):
            skipped[NORMS_NOT_BUILT] += 1
        else:
            continue
        del found[key]
    new = [key for key in own if key.startswith('out_norms.')] if not result.backbone.get('out_norm') else []
    found.update((key, own[key]) for key in new)
    try:
        backbone.load_state_dict(found, strict=True)
    except RuntimeError as error:
        raise UserError(f'{error}. Set backbone={_config(result)}') from error
    dropped = [f'{count} {reason}' for reason, count in (result.dropped + skipped).items()]
    return ', '.join(
        [
            f'{result.backbone["type"]} {_arch(result)} from {result.origin}',
            f'{len(found) - len(new)} loaded',
            *([f'{len(result.resized)} bias tables enlarged'] if result.resized else []),
            *([f'{len(new)} new (out_norm)'] if new else []),
            *([f'left out on purpose: {" and ".join(dropped)}'] if dropped else []),
        ]
    )


def _check_kind(backbone: DenseBackbone, result: Result) -> None:
    """Everything that the config says about the weights must agree with the weights."""
    wanted, problems = result.backbone, []
    if type(backbone).__name__ != wanted['type'] or (
        backbone.arch != wanted['arch'] and backbone.settings != type(backbone).ARCHS.get(wanted['arch'])
    ):
        raise UserError(
            f'the config builds {type(backbone).__name__} {backbone.arch!r}, but these are weights of '
            f'{wanted["type"]} {wanted["arch"]!r}. Set backbone={_config(result)}, or name other weights'
        )
    channels = wanted.get('in_channels', 3)
    if backbone.in_channels != channels:
        problems.append(
            f'in_channels is {backbone.in_channels}, but the first convolution of these weights takes {channels}'
        )
    bias, grid = _bias(backbone)
    weights_bias, weights_grid = wanted.get('attention_bias', 'offset'), wanted.get('bias_grid', 7)
    if bias and bias != weights_bias and not _undecided(result):
        problems.append(
            f'attention_bias is {bias!r}, but these tables were learned as {weights_bias!r}'
            + (" (the authors' own detection and segmentation code)" if weights_bias == 'upstream' else '')
        )
    if bias and grid != weights_grid:
        problems.append(f'bias_grid is {grid}, but these tables have {weights_grid}')
    if wanted.get('out_norm') and not len(backbone.out_norms):
        problems.append('out_norm is False, but these weights have norms on the feature maps')
    if problems:
        raise UserError(f'{"; ".join(problems)}. Set backbone={_config(result)}, or name other weights')


def _bias(backbone: nn.Module) -> tuple[str | None, int]:
    """How the backbone uses its bias tables, and their grid; None where it has none, or has windows."""
    for name, module in backbone.named_modules():
        if type(module) in (OffsetBias, UpstreamBias) and '.downsample.' not in name:
            return ('upstream' if isinstance(module, UpstreamBias) else 'offset'), module.grid
    return None, 0


def _undecided(result: Result) -> bool:
    """In a file of ours without a note, the tables do not tell how they were used; the config does."""
    return result.origin == 'mmplugin' and not result.noted


def _arch(result: Result) -> str:
    return result.backbone['arch'] if isinstance(result.backbone['arch'], str) else 'with its own arch'


def _config(result: Result) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in result.backbone.items())}, ...)'


def _local(checkpoint: str | Path) -> Path:
    """The file itself, or the place that it was downloaded to."""
    address = urlparse(str(checkpoint))
    if address.scheme not in ('http', 'https'):
        if '://' in str(checkpoint):
            raise UserError(
                f'Pretrained weights {checkpoint}: cannot open {address.scheme}://; download the file and name its path'
            )
        return Path(checkpoint).expanduser()
    from mmengine.dist import barrier, is_main_process

    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(address.path).name
    if not path.exists() and is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(str(checkpoint), str(path))
        except OSError as error:
            raise UserError(
                f'Pretrained weights {checkpoint}: download failed ({error}); download the file and name its path'
            ) from error
    barrier()
    return path
