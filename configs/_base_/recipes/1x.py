# 1x schedule: 12 epochs, batch size 16.
_base_ = '../runtime.py'
default_scope = 'mmdet'
train_cfg = dict(type='ResumableEpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
visualizer = dict(type='DetLocalVisualizer', line_width=2, alpha=0.6, vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
auto_scale_lr = dict(enable=False, base_batch_size=16)
