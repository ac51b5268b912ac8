"""What a conversion did, for a person and for a program."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmplugin.backbones import FAMILIES, DenseBackbone

from .classifier import Classifier, from_head
from .conversion import Result
from .formats import arch_name

PROOF_SIZE = 224


@dataclass
class Feature:
    """One feature map of the proof."""

    stride: int
    shape: tuple[int, ...]
    mean: float | None  # None where it is not finite, which JSON cannot say
    std: float | None


@dataclass
class Report:
    """Goes into the file's ``meta`` as plain values.

    Args:
        source: Name of the file.
        sha256: Of the file.
        origin: The project whose names it had.
        backbone: The config that the weights fit.
        parameters: Number of learned values in the backbone.
        loaded: Number of tensors that the backbone took.
        dropped: What it did not take on purpose, counted by reason.
        resized: Bias tables that were enlarged.
        left_over: Tensors that nobody asked for; a conversion that has one fails.
        proof: Feature maps of a test picture, from the backbone that was built and loaded with ``strict=True``.
        notes: What else a person should know.
    """

    source: str
    sha256: str
    origin: str
    backbone: dict[str, Any]
    parameters: int
    loaded: int
    dropped: dict[str, int]
    resized: dict[str, tuple[int, int]]
    left_over: int
    proof: list[Feature]
    notes: list[str] = field(default_factory=list)

    def as_meta(self) -> dict[str, Any]:
        return _plain(asdict(self))

    def show(self, console: Console, written: str | None) -> None:
        """Prints a table, and the lines for a config if ``written`` is a file for one."""
        table = Table(title=self.source, title_justify='left', title_style='bold', box=box.HORIZONTALS, min_width=72)
        table.show_header = False
        table.add_column(style='cyan', no_wrap=True)
        table.add_column(overflow='fold')
        origin = {'original': 'its authors', 'original dense': "its authors' dense code"}.get(self.origin, self.origin)
        network = f'{self.backbone["type"]} {arch_name(self.backbone["arch"])}'
        table.add_row('network', f'{network}, named by {origin}', style='bold')
        table.add_row('loaded', f'{self.loaded} tensors, {self.parameters / 1e6:.1f} M parameters')
        for reason, count in self.dropped.items():
            table.add_row('left out', f'{count} on purpose: {reason}')
        if self.resized:
            changes = ', '.join(sorted({f'{before} to {after}' for before, after in self.resized.values()}))
            table.add_row('resized', f'{len(self.resized)} bias tables, {changes} entries')
        table.add_row('left over', f'{self.left_over}')
        maps = ', '.join('x'.join(map(str, feature.shape[1:])) for feature in self.proof)
        table.add_row('proof', f'built, loaded strictly, run at {PROOF_SIZE}x{PROOF_SIZE}: maps {maps}')
        table.add_row('sha256', self.sha256)
        for note in self.notes:
            table.add_row('note', note, style='yellow')
        console.print(table)
        if written:
            config = ', '.join(f'{key}={value!r}' for key, value in self.backbone.items())
            console.print(f"backbone=dict({config},\n    init_cfg=dict(type='Pretrained', checkpoint='{written}'))")


def make_report(result: Result, source: str, sha256: str) -> tuple[Report, Classifier | None]:
    """Builds the backbone, loads it, runs it, and takes notes.

    Returns:
        tuple: The report, and the classifier if the source has one.
    """
    backbone = build(result)
    with torch.inference_mode():
        maps = backbone(picture(backbone.in_channels))
    proof = [
        Feature(stride, tuple(x.shape), *(m.item() if m.isfinite() else None for m in (x.mean(), x.std())))
        for stride, x in zip(backbone.out_strides, maps, strict=True)
    ]
    notes = list(result.notes)
    if any(feature.std is None for feature in proof):
        notes.append('the maps of the test picture are not finite: are these weights of a trained network?')
    channels = backbone.settings['widths'][-1]
    report = Report(
        source,
        sha256,
        result.origin,
        result.backbone,
        sum(parameter.numel() for parameter in backbone.parameters()),
        len(result.state_dict),
        dict(result.dropped),
        result.resized,
        0,
        proof,
        notes,
    )
    return report, from_head(result.family, channels, result.head)


def build(result: Result) -> DenseBackbone:
    """The backbone of a conversion, with its weights, in evaluation mode."""
    with torch.device('meta'):  # no time and memory for random weights that are replaced at once
        backbone = FAMILIES[result.family](**{key: value for key, value in result.backbone.items() if key != 'type'})
    backbone.load_state_dict(result.state_dict, strict=True, assign=True)
    return backbone.float().eval()


def picture(channels: int = 3) -> Tensor:
    """Waves of several lengths: the same picture everywhere, without a file."""
    axis = torch.linspace(0, 1, PROOF_SIZE)
    waves = [torch.sin(6.3 * (2 + i) * axis)[:, None] * torch.cos(6.3 * (3 + i) * axis) for i in range(channels)]
    return torch.stack(waves)[None]


def _plain(value: Any) -> Any:
    """Tuples as lists: what comes back from JSON is what went in."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
