"""Write the table of parameters and multiply-adds into docs/backbones.md.

Run ``python docs/scripts/backbone_sizes.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple

from markers import ROOT, replace_between

from mmplugin.benchmark.published import PUBLISHED
from mmplugin.benchmark.sizes import ARCHS, head_parameters, macs, on_meta_device, parameters
from mmplugin.tables import Table

PAGE = ROOT / 'docs' / 'backbones.md'
SIZES = ((224, 224), (512, 512), (800, 1333))


class Count(NamedTuple):
    """Counts of one backbone."""

    parameters: int
    with_head: int
    macs: list[int]  # at each size


def count(sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, Count]:
    """Count all backbones, which takes some seconds."""
    counts = {}
    for name in ARCHS:
        model = on_meta_device(name)
        own = parameters(model)
        counts[name] = Count(own, own + head_parameters(model), macs(name, sizes))
    return counts


def table(counts: dict[str, Count]) -> str:
    """Return the table of the page."""
    rows = []
    for name, (own, with_head, multiply_adds) in counts.items():
        (cls, arch), paper = ARCHS[name], PUBLISHED[name]
        at_224, *at_others = (f'{value / 1e9:.3g}' for value in multiply_adds)
        millions = f'{own / 1e6:.2f}', f'{with_head / 1e6:.2f}', f'{paper.parameters}'
        rows.append((f'`{cls.__name__}`', f'`{arch}`', *millions, at_224, f'{paper.gmacs:.3g}', *at_others))
    head = ('Backbone', 'arch', 'parameters M', 'with classifier M', 'paper M')
    return Table('', (*head, 'GMACs at 224x224', 'paper', 'at 512x512', 'at 800x1333'), rows).markdown()


if __name__ == '__main__':
    replace_between(PAGE, 'sizes', table(count()))
