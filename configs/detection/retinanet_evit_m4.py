# Published: box AP 32.7 (COCO val2017, EfficientViT paper).
_base_ = ['../_base_/models/retinanet_evit.py', '../_base_/datasets/coco_boxes.py', '../_base_/recipes/1x_evit.py']
model = dict(
    backbone=dict(
        arch='m4',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientvit_m4.r224_in1k'),
    ),
    neck=dict(in_channels=[128, 256, 384]),
)
