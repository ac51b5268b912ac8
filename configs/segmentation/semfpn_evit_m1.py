# Published: none.
_base_ = ['../_base_/models/semantic_fpn_evit.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k.py']
model = dict(
    backbone=dict(
        arch='m1',
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientvit_m1.r224_in1k'),
    ),
    neck=dict(in_channels=[128, 144, 192]),
)
