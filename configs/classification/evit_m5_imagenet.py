# Published: top-1 77.1 % (ImageNet-1k, EfficientViT paper).
_base_ = ['../_base_/models/classifier.py', '../_base_/datasets/imagenet_2048.py', '../_base_/recipes/300e_evit.py']
model = dict(backbone=dict(type='EfficientViTMSRA', arch='m5'))
