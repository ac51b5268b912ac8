"""Published figures of the thirteen backbones, the only copy in the package."""

from typing import NamedTuple


class Published(NamedTuple):
    """One row of the papers' tables."""

    parameters: float  # millions, the ImageNet classifier included
    gmacs: float  # for one image of 224x224
    accuracy: dict[str, float]  # top-1 after 300 epochs, COCO AP after 12 epochs, ADE20K mIoU after 40,000 iterations
    weights_top1: tuple[float, ...]  # of the released files: V2 was trained for 450 epochs, the second l1 for 1000


# Table 2 of EfficientFormerV2 (for V1 too) and Table 2 of EfficientViT, and the papers' tables of dense prediction
PUBLISHED = {
    'v1_l1': Published(12.3, 1.3, {'top-1': 79.2, 'box AP': 37.9, 'mask AP': 35.4, 'mIoU': 38.9}, (79.2, 80.2)),
    'v1_l3': Published(31.3, 3.9, {'top-1': 82.4, 'box AP': 41.4, 'mask AP': 38.1, 'mIoU': 43.5}, (82.4,)),
    'v1_l7': Published(82.1, 10.2, {'top-1': 83.3, 'box AP': 42.6, 'mask AP': 39.0, 'mIoU': 45.1}, (83.3,)),
    'v2_s0': Published(3.5, 0.40, {'top-1': 75.7}, (76.2,)),
    'v2_s1': Published(6.1, 0.65, {'top-1': 79.0}, (79.7,)),
    'v2_s2': Published(12.6, 1.25, {'top-1': 81.6, 'box AP': 43.4, 'mask AP': 39.5, 'mIoU': 42.4}, (82.0,)),
    'v2_l': Published(26.1, 2.56, {'top-1': 83.3, 'box AP': 44.7, 'mask AP': 40.4, 'mIoU': 45.2}, (83.5,)),
    'evit_m0': Published(2.3, 0.079, {'top-1': 63.2}, (63.2,)),
    'evit_m1': Published(3.0, 0.167, {'top-1': 68.4}, (68.4,)),
    'evit_m2': Published(4.2, 0.201, {'top-1': 70.8}, (70.8,)),
    'evit_m3': Published(6.9, 0.263, {'top-1': 73.4}, (73.4,)),
    'evit_m4': Published(8.8, 0.299, {'top-1': 74.3, 'box AP': 32.8, 'mask AP': 31.0, 'RetinaNet AP': 32.7}, (74.3,)),
    'evit_m5': Published(12.4, 0.522, {'top-1': 77.1}, (77.1,)),
}
ACCURACIES = {
    'top-1': 'ImageNet top-1 in %',
    'box AP': 'COCO box AP (Mask R-CNN)',
    'mask AP': 'COCO mask AP (Mask R-CNN)',
    'RetinaNet AP': 'COCO AP (RetinaNet)',
    'mIoU': 'ADE20K mIoU (Semantic FPN)',
}
HEADS = {'maskrcnn': ('box AP', 'mask AP'), 'retinanet': ('RetinaNet AP',), 'semfpn': ('mIoU',)}


def accuracies_of(name: str) -> dict[str, float]:
    """Return the published accuracies of ``v2_s2``, ``timm:v2_s2`` (all), or of a config such as ``semfpn_v2_s2``."""
    head, _, arch = name.partition('_')
    if head not in HEADS:
        row = PUBLISHED.get(name.removeprefix('timm:'))
        return row.accuracy if row else {}
    return {key: value for key, value in accuracies_of(arch).items() if key in HEADS[head]}
