"""Write the tables in docs/model_zoo.md from docs/data/benchmark.json and the published figures in the package.

Run ``python docs/scripts/model_zoo.py`` after measuring.
"""

from markers import ROOT, replace_between

from mmplugin.benchmark.published import PUBLISHED
from mmplugin.benchmark.results import Results, size_text
from mmplugin.benchmark.sizes import ARCHS, on_meta_device
from mmplugin.tables import Table

DATA = ROOT / 'docs' / 'data' / 'benchmark.json'
PAGE = ROOT / 'docs' / 'model_zoo.md'
MODES = {'eager': 'Eager, ms', 'fused': 'Fused, ms', 'fused+compiled': 'Compiled, ms'}


def comparison() -> str:
    """Return the table of all backbones, published figures first, and the conditions of the measurement."""
    results = Results.from_json(DATA)
    first = results.of('infer')[0]
    measured = {
        (record.model, record.mode): record
        for record in results.of('infer')
        if (record.size, record.batch) == (first.size, first.batch)
    }
    rows = []
    for name, (cls, arch) in ARCHS.items():
        paper = PUBLISHED[name]
        accuracy = {metric: f'{value:.1f}' for metric, value in paper.accuracy.items()}
        both = ' / '.join(accuracy[metric] for metric in ('box AP', 'mask AP') if metric in accuracy)
        times = [measured.get((name, mode)) for mode in MODES]
        ratio = times[0].ratio if times[0] else None
        rows.append(
            [
                f'{cls.__name__} {arch}',
                f'`{name}`',
                f'{paper.parameters}',
                f'{paper.gmacs:.3g}',
                accuracy['top-1'],
                both,
                accuracy.get('RetinaNet AP', ''),
                accuracy.get('mIoU', ''),
                *(f'{record.value:.0f}' if record else '' for record in times),
                f'{ratio:.2f}' if ratio else '',
            ]
        )
    published = ['Params, M', 'GMACs', 'Top-1', 'Box / mask AP', 'RetinaNet AP', 'mIoU']
    table = Table('', ['Backbone', 'Name', *published, *MODES.values(), 'x timm'], rows)
    meta = results.meta
    conditions = (
        f'Measured at {size_text(first.size)}, batch {first.batch}, on {meta["machine"]} ({meta["device"]}), '
        f'{meta["threads"]} threads, torch {meta["torch"]}, {meta["date"]}, by'
    )
    return f'{table.markdown()}\n\n{conditions}\n\n```sh\n{meta["command"]}\n```'


def feature_maps() -> str:
    """Return the table of channels and strides."""
    rows = []
    for name in ARCHS:
        model = on_meta_device(name)
        channels, strides = (', '.join(map(str, values)) for values in (model.out_channels, model.out_strides))
        rows.append([f'`{name}`', f"`dict(type='{type(model).__name__}', arch='{model.arch}')`", channels, strides])
    return Table('', ['Name', 'In a config', 'Channels', 'Strides'], rows).markdown()


if __name__ == '__main__':
    replace_between(PAGE, 'comparison', comparison())
    replace_between(PAGE, 'feature maps', feature_maps())
