"""Mask R-CNN R18 without compiled operators: one training step, one prediction."""

from pathlib import Path

import pytest
import torch

import mmplugin  # noqa: F401 - installs the stand-in
from mmplugin import ops

ops.install()
mmdet = pytest.importorskip('mmdet')


@pytest.fixture(scope='module')
def model():
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py').model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512]
    cfg.roi_head.bbox_head.num_classes = cfg.roi_head.mask_head.num_classes = 3
    cfg.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    return MODELS.build(cfg)


@pytest.fixture(scope='module')
def batch():
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(2, [[3, 96, 128], [3, 128, 96]], num_classes=3, num_items=[4, 0], with_mask=True)


def test_a_training_step_gives_gradients_in_every_part(model, batch):
    model.train()
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total = sum(sum(value) if isinstance(value, list) else value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert total.isfinite()
    for part in ('backbone.layer4', 'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'):
        grads = [p.grad for p in model.get_submodule(part).parameters()]
        assert any(grad is not None and grad.isfinite().all() and grad.any() for grad in grads), part


def test_a_prediction_has_boxes_and_masks(model, batch):
    model.eval()
    with torch.no_grad():
        instances = model(**model.data_preprocessor(batch, False), mode='predict')[0].pred_instances
    assert len(instances) > 0
    assert instances.bboxes.isfinite().all()
    assert instances.masks.shape == (len(instances), *batch['data_samples'][0].ori_shape[:2])
    assert torch.equal(instances.scores, instances.scores.sort(descending=True).values)
