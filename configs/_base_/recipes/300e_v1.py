# EfficientFormer. Batch size 1024: eight processes of 128.
# The paper: AdamW, lr 1e-3 * batch / 1024, cosine to 1e-5, warm-up of 5 epochs, DeiT's augmentation, hard distillation.
# The authors' code, where the paper is silent: weight decay 0.025 (DeiT: 0.05), adaptive gradient clipping at 0.01
# (DeiT: none), warm-up from 1e-5 (first release: lr 2e-3 and 1e-6), and synchronized batch norm (not used here).
_base_ = '300e.py'
