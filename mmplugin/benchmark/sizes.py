"""Parameters and multiply-adds of all backbones, beside the papers' figures: writes the table in docs/backbones.md.

    python -m mmplugin.benchmark.sizes            # prints the table
    python -m mmplugin.benchmark.sizes --write    # puts it into docs/backbones.md
"""

import argparse
import re
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmplugin.backbones import FAMILIES, DenseBackbone

DOC = Path('docs/backbones.md')
SIZES = ((224, 224), (512, 512), (800, 1333))
# Table 2 of EfficientFormerV2's paper (V1 and V2) and Table 2 of EfficientViT's: parameters in millions, GMACs at 224
PAPERS = {
    'l1': (12.3, 1.3), 'l3': (31.3, 3.9), 'l7': (82.1, 10.2),
    's0': (3.5, 0.40), 's1': (6.1, 0.65), 's2': (12.6, 1.25), 'l': (26.1, 2.56),
    'm0': (2.3, 0.079), 'm1': (3.0, 0.167), 'm2': (4.2, 0.201),
    'm3': (6.9, 0.263), 'm4': (8.8, 0.299), 'm5': (12.4, 0.522),
}  # fmt: skip


def without_data(cls: type[DenseBackbone], arch: str) -> DenseBackbone:
    with torch.device('meta'):
        return cls(arch)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: DenseBackbone, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products, counted while the model runs on tensors without data."""
    model = model.to('meta').eval()  # results have shapes only
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, model.in_channels, height, width, device='meta'))
    return counter.get_total_flops() // 2


def head_parameters(model: DenseBackbone) -> int:
    """What the published classifiers add: a norm and one linear layer, or two where a teacher was distilled."""
    channels, classes = model.out_channels[-1], 1000
    linears = 1 if type(model) is FAMILIES['evit'] else 2
    return 2 * channels + linears * (channels + 1) * classes


def rows() -> list[str]:
    lines = [
        '| Backbone | arch | params M, features | with ImageNet head | paper | GMACs at 224x224 | paper '
        '| at 512x512 | at 800x1333 |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for cls in FAMILIES.values():
        for arch in cls.ARCHS:
            model = without_data(cls, arch)
            own = parameters(model)
            counts = [f'{macs(model, *size) / 1e9:.3g}' for size in SIZES]
            published, published_macs = PAPERS[arch]
            lines.append(
                f'| `{cls.__name__}` | `{arch}` | {own / 1e6:.2f} | {(own + head_parameters(model)) / 1e6:.2f} '
                f'| {published} | {counts[0]} | {published_macs:.3g} | {counts[1]} | {counts[2]} |'
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', action='store_true', help=f'put the table into {DOC}')
    table = '\n'.join(rows())
    if not parser.parse_args().write:
        Console().print(table, soft_wrap=True, markup=False)
        return
    text, found = re.subn(r'(?s)\| Backbone \|.*?(?=\n\n|\n?\Z)', lambda _: table, DOC.read_text(), count=1)
    if not found:
        raise SystemExit(f'{DOC} has no table to replace')
    DOC.write_text(text)


if __name__ == '__main__':
    main()
