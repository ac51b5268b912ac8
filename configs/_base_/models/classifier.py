# A backbone with a linear classifier. Configs add the backbone; the head follows its family and its last width.
model = dict(
    type='PretrainingClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
        num_classes=1000,
    ),
    head=dict(num_classes=1000, label_smoothing=0.1),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),  # one of them, evenly
)
