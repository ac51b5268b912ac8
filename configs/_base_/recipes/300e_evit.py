# EfficientViT. Batch size 2048: eight processes of 256.
# The paper: AdamW, lr 1e-3 at batch size 2048, cosine, weight decay 0.025, DeiT's augmentation, no distillation.
# The authors' code multiplies this rate by batch / 512, which makes it 4e-3: --lr 4e-3 trains like that.
# The authors' code, where the paper is silent: warm-up of 5 epochs from 1e-6, lr ends at 1e-5, adaptive gradient
# clipping at 0.02, repeated augmentation, average of the weights with 0.99996, no decay of attention biases.
_base_ = '300e.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(attention_biases=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
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
    dict(type='AdaptiveClipHook', factor=0.02),
]
auto_scale_lr = dict(enable=False, base_batch_size=2048)
