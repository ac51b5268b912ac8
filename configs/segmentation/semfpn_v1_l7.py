# Published: mIoU 45.1 (ADE20K val, single scale, EfficientFormer paper).
_base_ = ['../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l7',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l7.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
