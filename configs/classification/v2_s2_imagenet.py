# Published: top-1 81.6 % (ImageNet-1k, EfficientFormerV2 paper).
_base_ = ['../_base_/models/distilled_classifier.py', '../_base_/datasets/imagenet.py', '../_base_/recipes/300e_v2.py']
model = dict(backbone=dict(type='EfficientFormerV2', arch='s2'))
