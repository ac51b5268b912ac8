# Baseline on the built-in data set (docs/detection.md): ResNet-18 with the same recipe.
_base_ = ['../_base_/models/mask_rcnn.py', '../_base_/datasets/coco.py', '../_base_/recipes/1x_v2.py']
model = dict(
    backbone=dict(
        type='ResNet',
        depth=18,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
