# Published: box AP 42.6, mask AP 39.0 (COCO val2017, EfficientFormer paper).
_base_ = ['../_base_/models/mask_rcnn.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_v1.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l7',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l7.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
