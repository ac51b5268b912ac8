"""The papers' own numbers, computed by this package. The figures below are copied from the papers' tables."""

import pytest
import torch
from torch import nn

from mmplugin.benchmark.published import PUBLISHED
from mmplugin.benchmark.results import mes
from mmplugin.benchmark.sizes import ARCHS, deployed_parameters, macs, on_meta_device, parameters

# EfficientFormerV2, Table 2: million parameters, ms on an iPhone 12, MES
TABLE_2 = [
    ('MobileNetV2 x1.0', 3.5, 0.9, 102.9),
    ('MobileViT-XS', 2.3, 7.3, 15.6),
    ('EdgeViT-XXS', 4.1, 2.4, 35.6),
    ('EfficientFormerV2-S0', 3.5, 0.9, 102.9),
    ('MobileNetV2 x1.4', 6.1, 1.2, 58.4),
    ('EfficientNet-B0', 5.3, 1.4, 53.7),
    ('DeiT-T', 5.9, 9.2, 7.8),
    ('EdgeViT-XS', 6.7, 3.6, 18.6),
    ('LeViT-128S', 7.8, 19.9, 3.1),
    ('EfficientFormerV2-S1', 6.1, 1.1, 63.8),
    ('EfficientNet-B3', 12, 5.3, 9.4),
    ('PoolFormer-s12', 12, 1.5, 33.3),
    ('LeViT-192', 10.9, 29.6, 1.8),
    ('MobileFormer-508M', 14, 6.6, 7.0),
    ('UniNet-B1', 11.5, 2.2, 23.2),
    ('EdgeViT-S', 11.1, 4.6, 11.3),
    ('EfficientFormer-L1', 12.3, 1.4, 35.3),
    ('EfficientFormerV2-S2', 12.6, 1.6, 30.5),
    ('ResNet50', 25.5, 2.5, 13.7),
    ('ConvNext-T', 29, 83.7, 0.4),
    ('ResMLP-S24', 30, 7.6, 4.2),
    ('PoolFormer-s24', 21, 2.4, 15.7),
    ('PoolFormer-s36', 31, 3.5, 8.9),
    ('DeiT-S', 22.5, 11.8, 3.1),
    ('PVT-Small', 24.5, 24.4, 1.4),
    ('LeViT-256', 18.9, 31.4, 1.3),
    ('LeViT-384', 39.1, 48.8, 0.6),
    ('Convmixer-768', 21.1, 11.6, 3.3),
    ('EfficientFormer-L3', 31.3, 2.7, 11.5),
    ('EfficientFormer-L7', 82.1, 6.6, 2.9),
    ('EfficientFormerV2-L', 26.1, 2.7, 12.6),
    ('Supernet', 37.1, 4.2, 6.8),
]


def test_the_mobile_efficiency_score_of_all_rows_of_table_2():
    computed = [(name, f'{mes(params, ms):.1f}') for name, params, ms, _ in TABLE_2]
    assert computed == [(name, f'{score:.1f}') for name, *_, score in TABLE_2]
    assert len(computed) == 32


def test_the_units_of_the_score_cancel_when_actions_are_compared():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        # ten actions: what they lose in accuracy, and the shares of parameters and latency that they leave
        losses, params, latency = torch.rand(3, 10, generator=generator, dtype=torch.float64)
        orders = set()
        for units in [(3.0, 1.0), (6.1, 27.5), (0.1, 400.0)]:
            gains = [
                mes(6.1 * p, 27.5 * ms, units) - mes(6.1, 27.5, units) for p, ms in zip(params, latency, strict=True)
            ]
            ratios = [float(loss) / float(gain) for loss, gain in zip(losses, gains, strict=True)]
            orders.add(tuple(sorted(range(10), key=ratios.__getitem__)))
        assert len(orders) == 1


@pytest.mark.parametrize('name', ARCHS)
def test_parameters_as_deployed_equal_the_published_ones_to_the_last_digit(name):
    assert (
        f'{deployed_parameters(on_meta_device(name), with_classifier=True) / 1e6:.1f}'
        == f'{PUBLISHED[name].parameters}'
    )


def test_the_first_rows_of_table_1_of_efficientformer_v2():
    # Parameters in millions and GMACs of l1, with another token mixer, and with another feed-forward network
    l1 = on_meta_device('v1_l1')
    settings = l1.explicit('l1')
    widths, depths = settings['widths'], list(settings['depths'])
    depths[-1] -= settings['attention_blocks']
    pooled = [(width, stage) for stage, depth in enumerate(depths) for width in [widths[stage]] * depth]
    channels = sum(width for width, _ in pooled)
    # pooling is a fixed convolution, which takes its layer scale; here the layer scale stays
    baseline = deployed_parameters(l1, with_classifier=True) - channels
    mixers = sum(parameters(nn.Conv2d(width, width, 3, groups=width, bias=False)) for width, _ in pooled)
    local = sum(parameters(nn.Conv2d(4 * width, 4 * width, 3, groups=4 * width)) for width, _ in pooled)
    assert f'{baseline / 1e6:.2f}' == '12.25'
    assert (baseline + mixers) / 1e6 == pytest.approx(12.27, abs=0.01)  # 12.277, printed without its third digit
    assert f'{(baseline + local) / 1e6:.2f}' == '12.37'
    (before,) = macs('v1_l1', [(224, 224)])
    after = before + sum(9 * 4 * width * (56 // 2**stage) ** 2 for width, stage in pooled)
    assert (after - before) / 1e9 == pytest.approx(1.33 - 1.30, abs=0.005)
    assert before / 1e9 == pytest.approx(1.30, abs=0.015)
