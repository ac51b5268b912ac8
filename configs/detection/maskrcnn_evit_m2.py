# Published: none.
_base_ = ['../_base_/models/mask_rcnn_evit.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_evit.py']
model = dict(
    backbone=dict(
        arch='m2',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/evit_m2.pth'),
    ),
    neck=dict(in_channels=[128, 192, 224]),
)
