# Published: mIoU 38.9 (ADE20K val, single scale, EfficientFormer paper).
_base_ = ['../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l1',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l1.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[48, 96, 224, 448]),
)
