# Published: none.
_base_ = ['../_base_/models/retinanet.py', '../_base_/datasets/coco_boxes.py', '../_base_/recipes/1x_v1.py']
model = dict(
    backbone=dict(
        type='EfficientFormer',
        arch='l1',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='hf-hub:timm/efficientformer_l1.snap_dist_in1k'),
    ),
    neck=dict(in_channels=[96, 224, 448]),
)
