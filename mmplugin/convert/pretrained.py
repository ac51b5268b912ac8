"""Loading of pretrained weights into a backbone: either everything fits, or an error is raised."""

from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmplugin.backbones import DenseBackbone
from mmplugin.backbones.arch import arch_name
from mmplugin.errors import UserError
from mmplugin.layers.attention_bias import OffsetBias, UpstreamBias

from . import arch_of, checkpoint_io, sources
from .conversion import Result, convert
from .download import local_path
from .formats import MMPLUGIN

STAGE_NOT_BUILT, NORM_NOT_BUILT = 'of stages above out_indices', 'norms of maps that are not returned'


def load_pretrained(
    backbone: DenseBackbone,
    checkpoint: str | Path,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    ema: bool = False,
    trust: bool = False,
) -> str:
    """Load a checkpoint, in mmplugin's format or any other that ``convert`` supports, into ``backbone``.

    Args:
        backbone: The backbone. It is not changed if anything does not fit.
        checkpoint: A path, or an http(s) URL, which is downloaded once.
        prefix: Load only keys with this prefix. Not needed for detectors and segmentors.
        map_location: For compatibility with OpenMMLab. The file is always read on the CPU and copied to the backbone.
        ema: Load the moving average of the weights.
        trust: Read files that contain more than tensors and plain values. This may run code that is in the file.

    Returns:
        A summary of what was loaded, in one line. It is also logged.
    """
    try:
        content = checkpoint_io.read(local_path(str(checkpoint)), trust)
        own_format = arch_of.family_of(sources.unwrap(content, ema, prefix).weights) is not None
        arch = backbone.arch if isinstance(backbone.arch, dict) and not own_format else None
        result = convert(content, arch, ema=ema, prefix=prefix)
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
            skipped[STAGE_NOT_BUILT] += 1
        elif key.startswith('out_norms.'):
            skipped[NORM_NOT_BUILT] += 1
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
            f'{result.backbone["type"]} {arch_name(result.backbone["arch"])} from {result.origin}',
            f'{len(found) - len(new)} tensors loaded',
            *([f'{len(result.resized)} bias tables enlarged'] if result.resized else []),
            *([f'{len(new)} tensors new (out_norm)'] if new else []),
            *([f'not used: {" and ".join(dropped)}'] if dropped else []),
        ]
    )


def _check_kind(backbone: DenseBackbone, result: Result) -> None:
    """Check that the arguments of the backbone match the weights."""
    wanted, different = result.backbone, []
    if type(backbone).__name__ == wanted['type']:
        # Of stages that only one of them has, the names of the missing tensors are reported.
        built, found = (arch_of.read(result.family, weights) for weights in (backbone.state_dict(), result.state_dict))
        different = arch_of.differences(built, found)
    if different or type(backbone).__name__ != wanted['type']:
        raise UserError(
            f'the config builds {type(backbone).__name__} {_quoted(backbone.arch)}, but these are weights of '
            f'{wanted["type"]} {_quoted(wanted["arch"])}'
            + (f': {"; ".join(different)}' if different else '')
            + f'. Set backbone={_config(result)}, or use other weights'
        )
    problems = []
    channels = wanted.get('in_channels', 3)
    if backbone.in_channels != channels:
        problems.append(f'in_channels is {backbone.in_channels}, but the weights are for {channels}')
    bias, grid = _bias(backbone)
    weights_bias, weights_grid = wanted.get('attention_bias', 'offset'), wanted.get('bias_grid', 7)
    if bias and bias != weights_bias and not _undecided(result):
        problems.append(
            f'attention_bias is {bias!r}, but the weights were trained with {weights_bias!r}'
            + (" (the authors' own detection and segmentation code)" if weights_bias == 'upstream' else '')
        )
    if bias and grid != weights_grid:
        problems.append(f'bias_grid is {grid}, but the weights have {weights_grid}')
    if wanted.get('out_norm') and not len(backbone.out_norms):
        problems.append('out_norm is False, but the weights include the norms of the feature maps')
    if problems:
        raise UserError(f'{"; ".join(problems)}. Set backbone={_config(result)}, or use other weights')


def _quoted(arch: str | dict) -> str:
    return repr(arch) if isinstance(arch, str) else f'({arch_name(arch)})'


def _bias(backbone: nn.Module) -> tuple[str | None, int]:
    """Return ``attention_bias`` and ``bias_grid`` of a backbone, or None and 0 if it has no such argument."""
    for name, module in backbone.named_modules():
        if type(module) in (OffsetBias, UpstreamBias) and '.downsample.' not in name:
            return ('upstream' if isinstance(module, UpstreamBias) else 'offset'), module.grid
    return None, 0


def _undecided(result: Result) -> bool:
    """Return whether only the config knows how the bias tables are used, as in checkpoints that mmplugin trained."""
    return result.origin == MMPLUGIN and not result.config_saved


def _config(result: Result) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in result.backbone.items())}, ...)'
