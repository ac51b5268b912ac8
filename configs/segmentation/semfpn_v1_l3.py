# Published: mIoU 43.5 (ADE20K val, single scale, EfficientFormer paper).
_base_ = ['../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k.py', '../_base_/recipes/40k.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l3',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l3.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
