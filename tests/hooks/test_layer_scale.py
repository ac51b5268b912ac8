"""The layer scales of a training from scratch, and only of such a training."""

from types import SimpleNamespace

import pytest
from torch import nn

from mmplugin.backbones import EfficientFormerV2
from mmplugin.engine.config import load_config
from mmplugin.hooks.layer_scale import LayerScaleHook


@pytest.mark.parametrize(('iteration', 'loaded', 'expected'), [(0, False, 0.3), (0, True, 1e-5), (7, True, 1e-5)])
def test_layer_scales_are_set_before_a_training_from_scratch_only(iteration, loaded, expected):
    backbone = EfficientFormerV2('s0')
    model = nn.Module()
    model.backbone = backbone
    LayerScaleHook().before_train(SimpleNamespace(iter=iteration, _has_loaded=loaded, model=model))
    scales = [value for name, value in backbone.named_parameters() if 'layer_scale' in name]
    assert scales
    for scale in scales:
        assert scale.detach().unique().tolist() == pytest.approx([expected])


@pytest.mark.parametrize(('weights', 'has_hook'), [('none', True), ('backbone.pth', False)])
def test_weights_none_adds_the_hook(weights, has_hook):
    hooks = load_config('retinanet_v2_s0', weights=weights).custom_hooks
    assert any(hook['type'] == 'LayerScaleHook' for hook in hooks) == has_hook
