"""The result of a model for one image. It is that of exported files, so that both draw and write the same."""

from mmplugin.deploy.predictor import IGNORED, Prediction, coco_writer, mask_writer

__all__ = ['IGNORED', 'Prediction', 'coco_writer', 'mask_writer']
