# 40k iterations for EfficientFormerV2, which ends at lr 1e-6.
_base_ = '40k.py'
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=40000, by_epoch=False)]
