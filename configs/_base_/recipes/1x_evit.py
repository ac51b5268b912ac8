# 1x schedule for EfficientViT: no weight decay for the attention biases.
_base_ = '1x.py'
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(attention_biases=dict(decay_mult=0.0))),
)
