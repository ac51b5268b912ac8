# Published: box AP 32.7 (COCO val2017, EfficientViT paper).
_base_ = ['../_base_/models/retinanet_evit.py', '../_base_/datasets/coco_boxes.py', '../_base_/recipes/1x_evit.py']
model = dict(
    backbone=dict(
        arch='m4',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/evit_m4.pth'),
    ),
    neck=dict(in_channels=[128, 256, 384]),
)
