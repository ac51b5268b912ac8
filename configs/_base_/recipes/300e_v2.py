# EfficientFormerV2. Batch size 1024: eight processes of 128.
# The paper, table 5: AdamW, lr 1e-3 * batch / 1024, cosine, warm-up of 5 epochs, weight decay 0.025, RandAug(9, 0.5),
# clipping 0.01, erasing 0.25, label smoothing 0.1, mixup 0.8, cutmix 1.0, drop path 0, 0, 0.02, 0.1.
# Its color jitter of 0.4 has no effect: timm replaces color jitter by RandAugment.
# The authors' code, where the paper is silent: clipping is adaptive, lr ends at 1e-5, warm-up from 1e-5, repeated
# augmentation, average of the weights with 0.99996, decay of layer scales, which have the shape (C, 1, 1) there.
# It uses synchronized batch norm, too, which is not used here.
_base_ = '300e.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(layer_scale=dict(decay_mult=1.0))))
