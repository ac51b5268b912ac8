# Published: none.
_base_ = ['../_base_/models/retinanet.py', '../_base_/datasets/coco_boxes.py', '../_base_/recipes/1x_v1.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l7',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l7.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
