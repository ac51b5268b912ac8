"""What a search leaves in its work folder: an ordinary config, ordinary checkpoints, and the way to them."""

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmplugin.convert import checkpoint_io
from mmplugin.errors import UserError
from mmplugin.files import atomic_write, require_file
from mmplugin.text import some

from .budget import CLOSE, QUANTITIES, Budget, Figures
from .subnet import arguments_of

TRACE, STATE = 'trace.jsonl', '.state.pth'
NEEDED = {'number', 'arch', 'loss'}  # of a record of the trace; that of the start has 'measured', too
START_HOOKS = ('WarmStartHook', 'LayerScaleHook')  # would replace the weights that were found
FOLDER = '{{ fileDirname }}'  # mmengine replaces it by the folder of the config


@dataclass
class Result:
    """The network that a search found.

    Args:
        cfg: Config that the search started from, adapted to its data.
        model: The model with the backbone that was found.
        metainfo: Classes and palette of the data.
        summary: One sentence.
        trace: A record per step.
    """

    cfg: Config
    model: Any
    metainfo: Mapping[str, Any]
    summary: str
    trace: list[dict[str, Any]]

    @property
    def arch(self) -> dict[str, Any]:
        """The arch of the backbone, as plain lists and numbers."""
        backbone = self.model.backbone
        arch = dict(backbone.explicit(backbone.settings))
        if 'drop_path_rate' in backbone.settings:
            arch['drop_path_rate'] = backbone.settings['drop_path_rate']
        return json.loads(json.dumps(arch))

    @property
    def state_dict(self) -> dict[str, Any]:
        """The weights of the backbone."""
        return self.model.backbone.state_dict()

    def save(self, folder: str | Path) -> None:
        """Write config.py, backbone.pth, whole.pth, arch.json and trace.jsonl."""
        folder, kind = Path(folder), type(self.model.backbone).__name__
        arguments = arguments_of(self.model.backbone)
        kept = ('in_channels', 'attention_bias', 'bias_grid', 'out_norm')
        backbone = dict(type=kind, arch=self.arch, **{key: arguments[key] for key in kept if key in arguments})
        meta = dict(backbone=backbone, report=dict(summary=self.summary))
        checkpoint_io.write(folder / 'backbone.pth', dict(state_dict=self.state_dict, meta=meta), force=True)
        dataset_meta = {key: self.metainfo[key] for key in ('classes', 'palette') if key in self.metainfo}
        whole = dict(state_dict=self.model.state_dict(), meta=dict(dataset_meta=dataset_meta, search=self.summary))
        checkpoint_io.write(folder / 'whole.pth', whole, force=True)
        write_json(folder / 'arch.json', dict(type=kind, arch=self.arch))
        write_trace(folder / TRACE, self.trace)
        with atomic_write(folder / 'config.py') as draft:
            self.config().dump(draft.with_suffix('.py'))
            draft.with_suffix('.py').rename(draft)

    def config(self) -> Config:
        """Return the config of the result, which starts from its backbone.pth."""
        cfg = copy.deepcopy(self.cfg)
        for key in ('work_dir', 'load_from', 'resume', 'launcher'):
            cfg.pop(key, None)
        cfg.model.backbone.arch = self.arch
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'{FOLDER}/backbone.pth')
        if 'neck' in cfg.model and 'in_channels' in cfg.model.neck:
            cfg.model.neck.in_channels = list(self.model.neck.in_channels)
        hooks = cfg.get('custom_hooks') or []
        cfg.custom_hooks = [hook for hook in hooks if hook.get('type') not in START_HOOKS]
        return cfg


@dataclass(frozen=True)
class Found:
    """A network for one target.

    Args:
        folder: Where it was written.
        result: The network.
        budget: The target.
        kept: What is kept of each size of the start; it follows from the actions of a pruning if None.
    """

    folder: Path
    result: Result
    budget: Budget
    kept: Mapping[str, tuple[int, int]] | None = None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, completely or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def write_trace(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    with atomic_write(path) as draft:
        draft.write_text(''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8')


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Read what ``write_trace`` wrote."""
    try:
        require_file(path)
        records = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        if not records or not all(isinstance(record, dict) and set(record) >= NEEDED for record in records):
            raise ValueError(f'each line must have {", ".join(sorted(NEEDED))}')
        for name in ('measured', 'loss'):
            if not 0 < records[0][name] < math.inf:
                raise ValueError(f'{name} of the start is {records[0][name]!r:.50}')
        return records
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f'--resume: {path} cannot be read ({error}); start the search again without --resume'
        ) from error


def summary(
    figures: Figures,
    start: Figures,
    limits: dict[str, float],
    losses: tuple[float, float],
    published: Sequence[str] = (),
    how: str = 'measured',
) -> str:
    """Return the result in one or two sentences, which can be negative.

    Args:
        figures: Of the result, measured.
        start: Of the start.
        limits: What was aimed at.
        losses: Of the start, and of the result.
        published: Published networks that meet the limits, too.
        how: Where the latency comes from.
    """
    parts = []
    for name, limit in limits.items():
        value, text = getattr(figures, name), QUANTITIES[name].format
        missed = value > limit * (1 + CLOSE)
        source = f'({how})' if name == 'latency_ms' else QUANTITIES[name].name
        parts.append(f'{text(value)} of {text(limit)} {source}{" MISSED" if missed else ""}')
    before, after = losses
    latency = '' if 'latency_ms' in limits else f'{figures.latency_ms:.1f} ms, '
    found = (
        f'{", ".join(parts)}; {latency}{figures.params / 1e6:.2f} M parameters, loss {after:.3f}. The start has '
        f'{start.latency_ms:.1f} ms, {start.params / 1e6:.2f} M and {before:.3f}.'
    )
    if after > before * (1 + CLOSE):
        found += f' The loss rose by {after / before - 1:.0%}: train the result, or search with more --recover steps.'
    if published:
        found += (
            f' {some(published)} {"meets" if len(published) == 1 else "meet"} the budget, too, by prediction: train '
            'one next to the result before you choose.'
        )
    return found
