# Published: none.
_base_ = ['../_base_/models/retinanet.py', '../_base_/datasets/coco_boxes.py', '../_base_/recipes/1x_v2.py']
model = dict(
    backbone=dict(
        type='EfficientFormerV2',
        arch='l',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformerv2_l.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[80, 192, 384]),
)
