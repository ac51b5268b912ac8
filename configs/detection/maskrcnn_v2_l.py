# Published: box AP 44.7, mask AP 40.4 (COCO val2017, EfficientFormerV2 paper).
_base_ = ['../_base_/models/mask_rcnn.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_v2.py']
model = dict(
    backbone=dict(
        type='EfficientFormerV2',
        arch='l',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformerv2_l.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[40, 80, 192, 384]),
)
