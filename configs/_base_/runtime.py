custom_imports = dict(imports=['mmplugin'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=False,
    # small nets are fast enough to wait for data: no OpenCV threads that fight the workers for cores
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # two are kept and each appears by a rename, so that a kill while saving costs nothing
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, backend_args=dict(backend='atomic')),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='ProgressHook'), dict(type='IterationSeedHook'), dict(type='LabelRangeHook')]
randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
