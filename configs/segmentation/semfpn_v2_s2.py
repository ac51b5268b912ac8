# Published: mIoU 42.4 (ADE20K val, single scale, EfficientFormerV2 paper).
_base_ = ['../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k_v2.py']
model = dict(
    backbone=dict(
        type='EfficientFormerV2',
        arch='s2',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformerv2_s2.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
