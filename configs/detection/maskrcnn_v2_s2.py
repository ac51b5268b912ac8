# Published: box AP 43.4, mask AP 39.5 (COCO val2017, EfficientFormerV2 paper).
_base_ = ['../_base_/models/mask_rcnn.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_v2.py']
model = dict(
    backbone=dict(
        type='EfficientFormerV2',
        arch='s2',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformerv2_s2.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
