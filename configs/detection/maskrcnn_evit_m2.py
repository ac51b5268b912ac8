# Published: none.
_base_ = ['../_base_/models/mask_rcnn_evit.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_evit.py']
model = dict(
    backbone=dict(
        arch='m2',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientvit_m2.r224_in1k'),
    ),
    neck=dict(in_channels=[128, 192, 224]),
)
