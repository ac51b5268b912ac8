# RetinaNet for EfficientViT, which starts at stride 16: the neck upsamples to stride 8.
_base_ = 'retinanet.py'
model = dict(
    backbone=dict(_delete_=True, type='EfficientViTMSRA', norm_eval=True),
    neck=dict(
        _delete_=True,
        type='UpsampledFPN',
        in_strides=(16, 32, 64),
        out_channels=256,
        out_strides=(8, 16, 32, 64, 128),
        add_extra_convs='on_input',
    ),
)
