# Published: box AP 41.4, mask AP 38.1 (COCO val2017, EfficientFormer paper).
_base_ = ['../_base_/models/mask_rcnn.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_v1.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l3',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l3.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
