# 300 epochs of ImageNet-1k with AdamW.
_base_ = '../runtime.py'
default_scope = 'mmpretrain'
train_cfg = dict(type='ResumableEpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.025),
    # As timm: no decay of parameters with one axis.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
# As timm: the cosine starts at epoch 0, below the warm-up, which scales it.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=0, end=300, T_max=300, convert_to_iter_based=True
    ),
]
custom_hooks = [
    dict(type='ProgressHook'),
    dict(type='IterationSeedHook'),
    dict(type='LabelRangeHook'),
    dict(type='FiniteLossHook'),
    dict(type='WeightAverageHook', momentum=4e-5),
    dict(type='AdaptiveClipHook', factor=0.01),
]
default_hooks = dict(logger=dict(interval=100))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
