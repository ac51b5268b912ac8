# Published: box AP 37.9, mask AP 35.4 (COCO val2017, EfficientFormer paper).
_base_ = ['../_base_/models/mask_rcnn.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_v1.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l1',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l1.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[48, 96, 224, 448]),
)
