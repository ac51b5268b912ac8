# ImageNet-1k with eight processes of 256 images, where the other recipes have 128.
_base_ = 'imagenet.py'
train_dataloader = dict(batch_size=256)
