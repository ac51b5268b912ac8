# 1x schedule for EfficientFormer, as in the released config. The paper says lr 1e-4.
_base_ = '1x.py'
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
