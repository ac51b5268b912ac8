"""Write ``configs/*/metafile.yml`` and ``model-index.yml``, which ``mim`` reads, from the configs themselves.

Run ``python docs/scripts/metafiles.py`` after adding or changing a config. The results are those that the first line of
a config gives as published. ``Weights`` is missing on purpose: no trained detectors or segmentors are published.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from mmengine import Config

ROOT = Path(__file__).parents[2]
PAPERS = {
    'EfficientFormer': ('EfficientFormer: Vision Transformers at MobileNet Speed', '2206.01191'),
    'EfficientFormerV2': ('Rethinking Vision Transformers for MobileNet Size and Speed', '2212.08059'),
    'EfficientViTMSRA': (
        'EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention',
        '2305.07027',
    ),
}
# prefix of the config: collection, its paper, dataset
HEADS = {
    'maskrcnn': ('Mask R-CNN', ('Mask R-CNN', '1703.06870'), 'COCO'),
    'retinanet': ('RetinaNet', ('Focal Loss for Dense Object Detection', '1708.02002'), 'COCO'),
    'semfpn': ('Semantic FPN', ('Panoptic Feature Pyramid Networks', '1901.02446'), 'ADE20K'),
}
TASKS = {'box AP': 'Object Detection', 'mask AP': 'Instance Segmentation', 'mIoU': 'Semantic Segmentation'}
NOTE = """\
# Written by docs/scripts/metafiles.py. Results are published by the authors of the backbones, not reproduced with this
# package, and there are no weights: train a config from converted ImageNet weights (docs/weights.md).
"""


def main() -> None:
    """Write all files."""
    folders = ['detection', 'segmentation']
    for folder in folders:
        _write(ROOT / 'configs' / folder / 'metafile.yml', metafile(ROOT / 'configs' / folder))
    _write(ROOT / 'model-index.yml', {'Import': [f'configs/{folder}/metafile.yml' for folder in folders]})


def metafile(folder: Path) -> dict[str, Any]:
    """Return the content of the metafile of a folder of configs."""
    configs = sorted(folder.glob('*.py'))
    heads = dict.fromkeys(path.stem.split('_')[0] for path in configs)
    return {'Collections': [_collection(head) for head in heads], 'Models': [_model(path) for path in configs]}


def _collection(head: str) -> dict[str, Any]:
    name, paper, dataset = HEADS[head]
    return {'Name': name, 'Metadata': {'Training Data': dataset}, 'Paper': _paper(*paper)}


def _model(path: Path) -> dict[str, Any]:
    cfg = Config.fromfile(path)
    head, _, dataset = HEADS[path.stem.split('_')[0]]
    backbone = cfg.model.backbone
    length = {'Epochs': cfg.train_cfg.max_epochs} if 'max_epochs' in cfg.train_cfg else {}
    model = {
        'Name': path.stem,
        'In Collection': head,
        'Config': path.relative_to(ROOT).as_posix(),
        'Metadata': {
            'Architecture': [f'{backbone.type} {backbone.arch}', head],
            'Training Data': dataset,
            **(length or {'Iterations': cfg.train_cfg.max_iters}),
            'Batch Size': cfg.auto_scale_lr.base_batch_size,
        },
        'Paper': _paper(*PAPERS[backbone.type]),
    }
    published = re.findall(r'(box AP|mask AP|mIoU) ([\d.]+)', path.read_text().splitlines()[0])
    results = [
        {'Task': TASKS[metric], 'Dataset': dataset, 'Metrics': {metric: float(value)}} for metric, value in published
    ]
    return {**model, 'Results': results} if results else model


def _paper(title: str, number: str) -> dict[str, str]:
    return {'Title': title, 'URL': f'https://arxiv.org/abs/{number}'}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(NOTE + yaml.safe_dump(content, sort_keys=False, width=120))


if __name__ == '__main__':
    main()
