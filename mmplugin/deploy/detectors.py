"""The forms of RetinaNet and of detectors with one stage of RoI heads, with or without masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmplugin.deploy.boxes import anchors, best, decode, large_enough, paste, positions, require_nms, suppress
from mmplugin.deploy.forms import SUPPORTED, Form
from mmplugin.errors import UserError
from mmplugin.ops import library


def _require(part: Any, kind: str, name: str) -> None:
    if type(part).__name__ != kind:
        raise UserError(
            f'{name} is a {type(part).__name__}, which has no form for export; supported: {SUPPORTED}. Use --what '
            'backbone or --what neck'
        )


class RetinaForm(Form):
    """RetinaNet.

    Args:
        model: The detector.
        classes: Names of the classes.
        score_threshold: Objects below it are not returned; None means the config's.
        max_boxes: Most objects of an image; None means the config's.
    """

    kind = 'boxes'
    outputs = ('boxes', 'scores', 'labels')
    score_threshold: float
    max_boxes: int

    def __init__(self, model: Any, classes: Sequence[str], score_threshold: float | None, max_boxes: int | None):
        super().__init__(model, classes)
        self.head, settings = model.bbox_head, model.bbox_head.test_cfg
        _require(self.head, 'RetinaHead', 'bbox_head')
        _require(self.head.bbox_coder, 'DeltaXYWHBBoxCoder', 'bbox_head.bbox_coder')
        if not self.head.use_sigmoid_cls:
            raise UserError('bbox_head.loss_cls.use_sigmoid is False; RetinaNet is exported with sigmoid scores only')
        self.nms, self.candidates = require_nms(settings.nms), settings.get('nms_pre', -1)
        self.least_side = settings.get('min_bbox_size', -1)
        self.score_threshold = settings.get('score_thr', 0) if score_threshold is None else score_threshold
        self.max_boxes = settings.max_per_img if max_boxes is None else max_boxes
        self.generator = self.head.prior_generator
        for i, base in enumerate(self.generator.base_anchors):
            self.register_buffer(f'anchors{i}', base, persistent=False)

    def predict(self, x: Tensor, valid: Tensor, original: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores and labels."""
        found = [self._level(i, *maps) for i, maps in enumerate(zip(*self.head(self.features(x)), strict=True))]
        priors, deltas, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        boxes = decode(priors, deltas, self.head.bbox_coder, valid)
        boxes = boxes * (original.float() / valid.float()).flip(0).repeat(2)
        keep = positions((scores > self.score_threshold) & large_enough(boxes, self.least_side))
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        index = suppress(boxes, scores, labels, self.nms, self.max_boxes)
        return boxes[index], scores[index], labels[index]

    def _level(self, level: int, logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        """Return the best candidates of a level: their anchors, deltas, scores and labels."""
        classes = self.head.cls_out_channels
        priors = anchors(getattr(self, f'anchors{level}'), logits.shape[-2:], self.generator.strides[level])
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        scores = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()  # anchors, then classes
        if self.candidates > 0:
            scores, chosen = best(scores, self.candidates)
        else:
            chosen = torch.arange(scores.shape[0])
        rows = chosen // classes
        return priors[rows], deltas[rows], scores, chosen % classes


class RoIForm(Form):
    """Mask R-CNN and Faster R-CNN.

    Args:
        model: The detector.
        classes: Names of the classes.
        score_threshold: Objects below it are not returned; None means the config's.
        max_boxes: Most objects of an image; None means the config's.
        full_masks: Return masks at the size of the original image, in place of grids over their boxes.
    """

    score_threshold: float
    max_boxes: int

    def __init__(
        self,
        model: Any,
        classes: Sequence[str],
        score_threshold: float | None,
        max_boxes: int | None,
        full_masks: bool = False,
    ):
        super().__init__(model, classes)
        self.full_masks = full_masks
        self.rpn, self.roi_head = model.rpn_head, model.roi_head
        _require(self.rpn, 'RPNHead', 'rpn_head')
        _require(self.roi_head, 'StandardRoIHead', 'roi_head')
        for coder in (self.rpn.bbox_coder, self.roi_head.bbox_head.bbox_coder):
            _require(coder, 'DeltaXYWHBBoxCoder', 'bbox_coder')
        _require(self.roi_head.bbox_roi_extractor, 'SingleRoIExtractor', 'roi_head.bbox_roi_extractor')
        if self.roi_head.with_shared_head or self.roi_head.bbox_head.custom_cls_channels:
            raise UserError(f'roi_head with a shared head or a custom activation has no form; supported: {SUPPORTED}')
        self.proposals, settings = self.rpn.test_cfg, self.roi_head.test_cfg
        self.rpn_nms, self.nms = require_nms(self.proposals.nms), require_nms(settings.nms)
        self.score_threshold = settings.score_thr if score_threshold is None else score_threshold
        self.max_boxes = settings.max_per_img if max_boxes is None else max_boxes
        self.has_masks = self.roi_head.with_mask
        self.kind, self.outputs = 'boxes', ('boxes', 'scores', 'labels')
        if self.has_masks:
            _require(self.roi_head.mask_head, 'FCNMaskHead', 'roi_head.mask_head')
            self.kind, self.outputs = 'masks', (*self.outputs, 'masks')
            self.mask_threshold = float(settings.mask_thr_binary)
        for i, base in enumerate(self.rpn.prior_generator.base_anchors):
            self.register_buffer(f'anchors{i}', base, persistent=False)

    def predict(self, x: Tensor, valid: Tensor, original: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels, and masks if there are any."""
        maps = self.features(x)
        boxes, scores, labels = self._classify(maps, self._propose(maps, valid), valid, original)
        if not self.has_masks:
            return boxes, scores, labels
        masks = self._masks(maps, boxes, labels)
        boxes = boxes / (valid.float() / original.float()).flip(0).repeat(2)
        if self.full_masks:
            assert self.mask_threshold is not None
            masks = paste(masks, boxes, original, self.mask_threshold)
        return boxes, scores, labels, masks

    def _propose(self, maps: Sequence[Tensor], valid: Tensor) -> Tensor:
        """Return the proposals of the RPN (n, 4)."""
        settings, found = self.proposals, []
        for i, (logits, deltas) in enumerate(zip(*self.rpn(maps), strict=True)):
            stride = self.rpn.prior_generator.strides[i]
            priors = anchors(getattr(self, f'anchors{i}'), logits.shape[-2:], stride)
            logits = logits[0].permute(1, 2, 0).reshape(-1, self.rpn.cls_out_channels)
            scores = logits[:, 0].sigmoid() if self.rpn.use_sigmoid_cls else logits.softmax(1)[:, 0]
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            if settings.get('nms_pre', -1) > 0:
                scores, chosen = best(scores, settings.nms_pre)
                priors, deltas = priors[chosen], deltas[chosen]
            found.append((priors, deltas, scores, torch.full_like(scores, i)))
        priors, deltas, scores, levels = (torch.cat(parts) for parts in zip(*found, strict=True))
        boxes = decode(priors, deltas, self.rpn.bbox_coder, valid)
        keep = positions(large_enough(boxes, settings.get('min_bbox_size', -1)))
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        return boxes[suppress(boxes, scores, levels, self.rpn_nms, settings.max_per_img)]

    def _classify(
        self, maps: Sequence[Tensor], boxes: Tensor, valid: Tensor, original: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes, scores and labels of the objects among the proposals."""
        boxes, pooled = _pool(self.roi_head.bbox_roi_extractor, maps, boxes)
        head = self.roi_head.bbox_head
        logits, deltas = head(pooled)
        count = head.num_classes
        scores = logits.softmax(1)[:, :count]
        repeats = 1 if head.reg_class_agnostic else count
        boxes = boxes[:, None].expand(-1, repeats, -1).reshape(-1, 4)
        boxes = decode(boxes, deltas.reshape(-1, 4), head.bbox_coder, valid)
        if not self.has_masks:  # with masks, boxes are scaled after the masks
            boxes = boxes * (original.float() / valid.float()).flip(0).repeat(2)
        scores = scores.reshape(-1)  # proposals, then classes
        keep = positions(scores > self.score_threshold)
        scores, labels = scores[keep], keep % count
        boxes = boxes[keep // count if head.reg_class_agnostic else keep]
        index = suppress(boxes, scores, labels, self.nms, self.max_boxes)
        return boxes[index], scores[index], labels[index]

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the probabilities (n, side, side)."""
        _, pooled = _pool(self.roi_head.mask_roi_extractor, maps, boxes)
        logits = self.roi_head.mask_head(pooled)
        count = logits.shape[1]
        if self.roi_head.mask_head.class_agnostic or count == 1:
            return logits[:, 0].sigmoid()
        rows = torch.arange(labels.shape[0], device=labels.device) * count + labels
        return logits.flatten(0, 1).index_select(0, rows).sigmoid()


def _pool(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Pool each box (n, 4) from the level that fits its size, as mmdet's ``SingleRoIExtractor``.

    Returns:
        The boxes, and what was pooled (n, C, side, side). The boxes are those of the argument, but the tracer knows
        that both results have the same length.
    """
    rois = torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], 1)
    levels = extractor.map_roi_levels(rois, extractor.num_inputs)
    members = [positions(levels == i) for i in range(extractor.num_inputs)]
    pooled = []
    for x, layer, index in zip(maps, extractor.roi_layers, members, strict=False):
        settings = int(layer.sampling_ratio), layer.pool_mode == 'avg', bool(layer.aligned)
        pooled.append(library.roi_align(x, rois[index], *layer.output_size, float(layer.spatial_scale), *settings)[0])
    order = torch.cat(members)
    back = order.argsort()
    return boxes[order][back], torch.cat(pooled)[back]
