# Published: top-1 79.2 % (ImageNet-1k, EfficientFormer paper).
_base_ = ['../_base_/models/distilled_classifier.py', '../_base_/datasets/imagenet.py', '../_base_/recipes/300e_v1.py']
model = dict(backbone=dict(type='EfficientFormer', arch='l1'))
