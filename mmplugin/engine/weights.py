"""Checkpoints for a model that exists: read safely, compared strictly, never half loaded in silence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as known
from torch import Tensor, nn

from mmplugin.convert import arch_of, checkpoint_io, formats, sources
from mmplugin.convert.download import local_path
from mmplugin.errors import UserError
from mmplugin.text import printable, some


@dataclass
class Fit:
    """How the tensors of a file compare with those of a model.

    Args:
        missing: Names that only the model has.
        unexpected: Names that only the file has.
        misshapen: Names whose shapes differ, with both shapes.
        not_finite: Names whose values include NaN or infinity.
        count: Number of tensors of the model.
    """

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    not_finite: list[str]
    count: int

    @property
    def complete(self) -> bool:
        """Whether every tensor fits."""
        return not (self.missing or self.unexpected or self.misshapen or self.not_finite)

    def problems(self) -> list[str]:
        """One line per kind of problem: the count and the first names."""
        kinds = {
            'missing in the file': self.missing,
            'unknown to the model': self.unexpected,
            'of another shape': self.misshapen,
            'with NaN or infinite values': self.not_finite,
        }
        return [
            f'{len(names)} tensors {kind}, such as {printable(", ".join(names[:3]))}'
            for kind, names in kinds.items()
            if names
        ]


def use_safe_loader(trust: bool = False) -> None:
    """Make mmengine read every checkpoint, of any scheme, through the restricted reader.

    mmengine's own loader falls back to unrestricted unpickling. This covers ``load_from``, ``resume``, ``init_cfg`` of
    any model and teacher networks, because all of them end in ``CheckpointLoader``.
    """

    def load(filename: str, map_location: Any = 'cpu') -> Mapping[str, Any]:
        content = checkpoint_io.read(local_path(_resolve(str(filename))), trust)
        _check_names(content, filename)
        if isinstance(content, dict) and isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)  # Runner.resume would run it as Python code
        if filename.startswith('mmcls://'):  # these files hold a whole classifier
            content = known._process_mmcls_checkpoint(content)
        return _moved(content, map_location)

    for prefix in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(prefixes=prefix, loader=load, force=True)


def _check_names(content: Any, path: str) -> None:
    """Refuse what mmengine does not expect: no dict, or names that are not text."""
    found = content.get('state_dict', content) if isinstance(content, Mapping) else content
    if not isinstance(found, Mapping):
        raise UserError(f'{path} holds a {type(found).__name__} where a dict of tensors is expected')
    if strange := [key for key in found if not isinstance(key, str)]:
        raise UserError(f'{path}: {len(strange)} names of tensors are not text ({printable(some(strange))})')


def _resolve(name: str) -> str:
    """The address behind the short names of OpenMMLab and torchvision."""
    scheme, found, model = name.partition('://')
    if not found or scheme in ('http', 'https'):
        return name
    tables = {
        'torchvision': known.get_torchvision_models,
        'modelzoo': known.get_torchvision_models,
        'open-mmlab': known.get_external_models,
        'openmmlab': known.get_external_models,
        'mmcls': known.get_mmcls_models,
    }
    address = tables[scheme]().get(model) if scheme in tables else None
    if address is None:
        raise UserError(f'{name}: cannot open this address; download the file and name its path')
    return address


def _moved(content: Any, map_location: Any) -> Any:
    """Tensors on the device that the caller asked for; ``None`` and functions mean the CPU, where they are read."""
    if not isinstance(map_location, str | torch.device) or torch.device(map_location).type == 'cpu':
        return content
    if isinstance(content, Tensor):
        return content.to(map_location)
    if isinstance(content, dict):
        return {key: _moved(value, map_location) for key, value in content.items()}
    if isinstance(content, list):
        return [_moved(value, map_location) for value in content]
    return content


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers for several processes and for test-time augmentation."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def state_dict_of(checkpoint: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, without the prefix of a distributed wrapper."""
    _check_names(checkpoint, str(path))
    found = checkpoint.get('state_dict', checkpoint)
    strange = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(
            f'{path} is not a checkpoint of a model: {len(strange)} entries are not tensors '
            f'({printable(some(strange))})'
        )
    return {key.removeprefix('module.'): value for key, value in found.items()}


def compare(model: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Compare names and shapes, then look for NaN in what has the right shape."""
    own = model.state_dict()
    common = [key for key in own if key in weights]
    same = [key for key in common if _alike(own[key], weights[key])]
    return Fit(
        # Files of old versions of torch do not have the counters of batch norm, which nothing uses.
        missing=[key for key in own if key not in weights and not key.endswith('num_batches_tracked')],
        unexpected=[key for key in weights if key not in own],
        misshapen=[
            f'{key} is {_size(weights[key])}, the model needs {_size(own[key])}'
            for key in common
            if not _alike(own[key], weights[key])
        ],
        not_finite=[key for key in same if not _finite(weights[key])],
        count=len(own),
    )


def load_exactly(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> Fit:
    """Load every tensor, or change nothing and say what does not fit."""
    fit = compare(model, weights)
    if not fit.complete:
        raise UserError(
            _refusal(path, fit, model, weights)
            + '. Name the checkpoint of this config; test and predict load what fits with --allow-partial'
        )
    model.load_state_dict(dict(weights), strict=True)
    return fit


def load_partially(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> Fit:
    """Load what fits, and return what does not. NaN is refused in any case."""
    fit = compare(model, weights)
    if fit.not_finite:
        raise UserError(_refusal(path, fit, model, weights))
    own = model.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and _alike(own[key], value)}
    if not fitting:
        raise UserError(_refusal(path, fit, model, weights))
    model.load_state_dict(fitting, strict=False)
    return fit


def load_for_finetuning(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> Fit:
    """Load a backbone completely, and of the other parts what fits: heads may have another number of classes."""
    fit = compare(model, weights)
    lost = [name for name in (*fit.missing, *fit.misshapen) if name.startswith('backbone.')]
    if lost:
        raise UserError(
            f'{_refusal(path, fit, model, weights)}. The whole backbone must fit to continue from these weights'
        )
    return load_partially(model, weights, path)


def _refusal(path: str | Path, fit: Fit, model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    fitting = fit.count - len(fit.missing) - len(fit.misshapen)
    different = ', '.join(_other_arch(model, weights))
    lines = '; '.join([*([f'the backbone has {different}'] if different else []), *fit.problems()])
    return f'{path} does not fit this model: {fitting} of {fit.count} tensors fit; {lines}. {describe(weights)}'


def _other_arch(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Say how the arch of a backbone of mmplugin differs from that in a file."""
    backbone = getattr(model, 'backbone', model)
    family = arch_of.family_of(body := _backbone_of(weights))
    if family is None or not isinstance(backbone, arch_of.FAMILIES[family]):
        return []
    try:
        return arch_of.differences(arch_of.read(family, backbone.state_dict()), arch_of.read(family, body))
    except UserError:  # damaged
        return []


def _backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the backbone of a detector or segmentor, without prefix; all weights if there is none."""
    body = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    return body or dict(weights)


def describe(weights: Mapping[str, Tensor]) -> str:
    """What a file holds: the backbone by its shapes, the other parts by their names, the classes of its heads."""
    if not weights:
        return 'The file holds no tensors'
    source_parts = sorted({key.partition('.')[0] for key in weights} - {'backbone'})
    body = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    try:
        backbone = str(formats.recognize(body or sources.unwrap(dict(weights)).weights))
    except UserError:
        backbone = 'a backbone that is not one of mmplugin'
    classes = _classes(weights)
    parts = f', with {", ".join(map(printable, source_parts[:5]))}' if body and source_parts else ''
    return f'The file holds {backbone}{parts}' + (f' for {classes} classes' if classes else '')


def _classes(weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes, from the last layer of the heads that mmplugin's configs use."""
    if (value := weights.get('roi_head.bbox_head.fc_cls.weight')) is not None and value.dim() == 2:
        return value.shape[0] - 1  # the last one is the background
    if (value := weights.get('decode_head.conv_seg.weight')) is not None and value.dim() == 4:
        return value.shape[0]
    logits, boxes = weights.get('bbox_head.retina_cls.weight'), weights.get('bbox_head.retina_reg.weight')
    if logits is not None and boxes is not None and boxes.dim() == 4 and boxes.shape[0] >= 4:
        return logits.shape[0] // (boxes.shape[0] // 4)
    return None


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether shapes are equal, and both hold real numbers, or both hold whole numbers."""
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _size(tensor: Tensor) -> str:
    size = 'x'.join(map(str, tensor.shape)) or 'a scalar'
    return size if tensor.is_floating_point() else f'{size} of {str(tensor.dtype).removeprefix("torch.")}'


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
