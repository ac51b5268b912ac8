# 1x schedule for EfficientFormerV2.
_base_ = '1x.py'
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05))
