_base_ = '1x.py'
# as in the released config; the paper says lr 1e-4
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
