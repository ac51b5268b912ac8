# Everything that all configs share.
custom_imports = dict(imports=['mmplugin'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=False,
    # Small networks often wait for data: OpenCV threads would compete with the workers for cores.
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Two are kept, and the backend 'atomic' writes by renaming: a kill during a save loses no checkpoint.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, backend_args=dict(backend='atomic')),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='ProgressHook'),
    dict(type='IterationSeedHook'),
    dict(type='LabelRangeHook'),
    dict(type='FiniteLossHook'),
]
randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
