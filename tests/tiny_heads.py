"""The heads of mmplugin's configs on backbones of a few blocks, with random weights that find objects."""

import torch
from mmengine.structures import BaseDataElement

from mmplugin.deploy.samples import Sample
from mmplugin.engine.config import load_config
from mmplugin.engine.runner import build_model

ARCHS = {
    'EfficientFormer': dict(widths=(8, 16, 24, 32), depths=(0, 0, 1, 1), attention_blocks=1, key_dim=4, value_dim=8),
    'EfficientFormerV2': dict(
        widths=(8, 16, 24, 32),
        depths=(0, 0, 1, 1),
        attention_blocks=1,
        ratios=((), (), (2,), (2,)),
        key_dim=4,
        value_dim=8,
    ),
    'EfficientViTMSRA': dict(widths=(16, 24, 32), depths=(0, 1, 1), heads=(2, 2, 2), kernels=(5, 3)),
}
HEADS = {'retina': 'retinanet_v2_s0', 'mask': 'maskrcnn_v2_s0', 'semantic': 'semfpn_v2_s0'}
CHANNELS = 16  # of the pyramid and the heads


def tiny_config(head):
    """Return the config of a detector or a segmentor."""
    cfg = load_config(HEADS[head])
    model = cfg.model
    arch = ARCHS['EfficientFormerV2']
    model.backbone.update(arch=arch, init_cfg=None)
    widths = arch['widths'][1:] if head == 'retina' else arch['widths']
    model.neck.update(in_channels=list(widths), out_channels=CHANNELS)
    if head == 'semantic':
        model.decode_head.update(in_channels=[CHANNELS] * 4, channels=CHANNELS, num_classes=5)
    elif head == 'retina':
        model.bbox_head.update(num_classes=5, in_channels=CHANNELS, feat_channels=CHANNELS, stacked_convs=1)
        model.test_cfg.update(nms_pre=60, max_per_img=20, score_thr=0.0)
    else:
        model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
        model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = CHANNELS
        model.roi_head.bbox_head.update(num_classes=5, in_channels=CHANNELS, fc_out_channels=32)
        model.roi_head.mask_head.update(num_classes=5, in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1)
        model.test_cfg.rpn.update(nms_pre=60, max_per_img=40)
        model.test_cfg.rcnn.update(max_per_img=20, score_thr=0.0)
    return cfg


def tiny(head):
    """Return a detector or a segmentor, and the names of its classes."""
    torch.manual_seed(0)
    built = build_model(tiny_config(head))
    for name, value in built.state_dict().items():
        # Weights as initialized give almost equal scores, whose order rounding would decide.
        if value.dim() > 1:  # small weights where boxes would be clipped to nothing, and scores would all be 1
            value.normal_(0, (0.1 if 'reg' in name or 'retina_cls' in name else 1) * value[0].numel() ** -0.5)
        elif 'layer_scale' in name:
            value.uniform_(0.5, 1.0)
    return built.eval(), tuple(f'class {i}' for i in range(5))


def sample(height, width, original):
    """Return an image of smooth noise, as the test pipeline would return it."""
    noise = torch.rand(1, 3, height // 8 + 1, width // 8 + 1)
    image = torch.nn.functional.interpolate(noise, (height, width), mode='bicubic').clamp(0, 1) * 255
    scale = width / original[1], height / original[0]
    truth = BaseDataElement(metainfo=dict(img_shape=(height, width), ori_shape=original, scale_factor=scale))
    return Sample(image[0].permute(1, 2, 0).byte().numpy(), truth)


def as_truth(head, image):
    """Return the image with a data sample of the library that the head belongs to."""
    if head == 'semantic':
        from mmseg.structures import SegDataSample as Kind
    else:
        from mmdet.structures import DetDataSample as Kind
    return Sample(image.image, Kind(metainfo=image.truth.metainfo))
