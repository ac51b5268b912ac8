# Published: none.
_base_ = ['../_base_/models/semantic_fpn_evit.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k.py']
model = dict(
    backbone=dict(
        arch='m2',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/evit_m2.pth'),
    ),
    neck=dict(in_channels=[128, 192, 224]),
)
