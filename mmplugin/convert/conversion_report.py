"""Report of a conversion, printed and stored in the converted file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmplugin.backbones import FAMILIES, DenseBackbone
from mmplugin.backbones.arch import arch_name

from .classifier import Classifier, from_head
from .conversion import Result

TEST_SIZE = 224


@dataclass
class Feature:
    """One feature map of the test image."""

    stride: int
    shape: tuple[int, ...]
    mean: float | None  # None if it is not finite, which JSON does not support
    std: float | None


@dataclass
class Report:
    """Report of a conversion.

    Args:
        source: Name of the source file.
        sha256: Checksum of the source file.
        origin: Project whose key names the file had.
        backbone: Config of the backbone that loads the weights.
        parameters: Number of trainable parameters of the backbone.
        loaded: Number of tensors in the backbone.
        dropped: Number of tensors that the backbone does not have, by reason.
        resized: Number of entries before and after, of each bias table that was enlarged.
        left_over: Number of unknown tensors. Always 0, because the conversion fails otherwise.
        proof: Feature maps of a test image, computed after loading with ``strict=True``.
        notes: Other remarks for the user.
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
        """Return the report as plain values, for the ``meta`` of the converted file."""
        return _plain(asdict(self))

    def show(self, console: Console, written: str | None) -> None:
        """Print a table, and the lines for a config if ``written`` is the path of a converted backbone."""
        table = Table(title=self.source, title_justify='left', title_style='bold', box=box.HORIZONTALS, min_width=72)
        table.show_header = False
        table.add_column(style='cyan', no_wrap=True)
        table.add_column(overflow='fold')
        origin = {'original': 'the authors', 'original dense': "the authors' dense code"}.get(self.origin, self.origin)
        network = f'{self.backbone["type"]} {arch_name(self.backbone["arch"])}'
        table.add_row('network', f'{network}, in the format of {origin}', style='bold')
        table.add_row('loaded', f'{self.loaded} tensors, {self.parameters / 1e6:.1f} M parameters')
        for reason, count in self.dropped.items():
            table.add_row('dropped', f'{count} tensors: {reason}')
        if self.resized:
            changes = ', '.join(sorted({f'{before} to {after}' for before, after in self.resized.values()}))
            table.add_row('resized', f'{len(self.resized)} bias tables, {changes} entries')
        table.add_row('left over', f'{self.left_over}')
        maps = ', '.join('x'.join(map(str, feature.shape[1:])) for feature in self.proof)
        table.add_row('test', f'loaded with strict=True; feature maps at {TEST_SIZE}x{TEST_SIZE}: {maps}')
        table.add_row('sha256', self.sha256)
        for note in self.notes:
            table.add_row('note', note, style='yellow')
        console.print(table)
        if written:
            config = ', '.join(f'{key}={value!r}' for key, value in self.backbone.items())
            console.print(f"backbone=dict({config},\n    init_cfg=dict(type='Pretrained', checkpoint='{written}'))")


def make_report(result: Result, source: str, sha256: str) -> tuple[Report, Classifier | None]:
    """Build, load and run the backbone.

    Returns:
        The report, and the classifier if the source has one.
    """
    backbone = build_backbone(result)
    with torch.inference_mode():
        maps = backbone(make_test_image(backbone.in_channels))
    proof = [
        Feature(stride, tuple(x.shape), *(m.item() if m.isfinite() else None for m in (x.mean(), x.std())))
        for stride, x in zip(backbone.out_strides, maps, strict=True)
    ]
    notes = list(result.notes)
    if any(feature.std is None for feature in proof):
        notes.append('the feature maps of the test image are not finite; check that the network was trained')
    report = Report(
        source=source,
        sha256=sha256,
        origin=result.origin,
        backbone=result.backbone,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        loaded=len(result.state_dict),
        dropped=dict(result.dropped),
        resized=result.resized,
        left_over=0,
        proof=proof,
        notes=notes,
    )
    return report, from_head(result.family, backbone.settings['widths'][-1], result.head)


def build_backbone(result: Result) -> DenseBackbone:
    """Build the backbone of a conversion, with its weights, in evaluation mode."""
    with torch.device('meta'):  # the initial weights are replaced, so do not compute them
        backbone = FAMILIES[result.family](**{key: value for key, value in result.backbone.items() if key != 'type'})
    backbone.load_state_dict(result.state_dict, strict=True, assign=True)
    return backbone.float().eval()


def make_test_image(channels: int = 3) -> Tensor:
    """Return an image of sine waves, which is the same on every machine."""
    axis = torch.linspace(0, 1, TEST_SIZE)
    waves = [torch.sin(6.3 * (2 + i) * axis)[:, None] * torch.cos(6.3 * (3 + i) * axis) for i in range(channels)]
    return torch.stack(waves)[None]


def _plain(value: Any) -> Any:
    """Turn tuples into lists, so that JSON returns the same values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
