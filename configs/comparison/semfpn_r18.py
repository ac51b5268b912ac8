# Baseline on the built-in data set (docs/segmentation.md): ResNet-18 with the same recipe.
_base_ = ['../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k_v2.py']
model = dict(
    backbone=dict(
        type='ResNet',
        depth=18,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
