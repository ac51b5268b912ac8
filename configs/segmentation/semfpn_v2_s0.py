# Published: none.
_base_ = ['../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k_v2.py']
model = dict(
    backbone=dict(
        type='EfficientFormerV2',
        arch='s0',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformerv2_s0.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[32, 48, 96, 176]),
)
