"""Images of a config's data, and what PyTorch and a file find in them, in the same form."""

import copy
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmplugin.config_edits import evaluator_list
from mmplugin.data.load_errors import NamedTransform
from mmplugin.deploy.masks import paste_masks
from mmplugin.deploy.metadata import Metadata
from mmplugin.engine.runner import CommandRunner, prepare_
from mmplugin.errors import UserError
from mmplugin.hooks.progress import only_warnings_on_terminal


@dataclass(frozen=True)
class Sample:
    """An image after the test pipeline.

    Args:
        image: uint8 (height, width, 3), channels as the pipeline returns them.
        truth: The data sample of mmdet or mmseg.
        source: The image before resizing; files that resize by themselves take it.
    """

    image: np.ndarray
    truth: Any
    source: Any = None

    @property
    def original(self) -> tuple[int, int]:
        """Height and width before resizing."""
        return tuple(self.truth.ori_shape[:2])

    def resized(self, height: int, width: int) -> 'Sample':
        """Return the image at another size; the original stays the same."""
        import cv2

        return self.replaced(cv2.resize(self.image, (width, height), interpolation=cv2.INTER_LINEAR))

    def replaced(self, image: np.ndarray) -> 'Sample':
        """Return the original with another resized image."""
        truth, (rows, columns) = copy.deepcopy(self.truth), self.original
        height, width = image.shape[:2]
        truth.set_metainfo(dict(img_shape=(height, width), scale_factor=(width / columns, height / rows)))
        return Sample(image, truth, self.source)

    def with_source(self, height: int, width: int) -> 'Sample':
        """Return an original of another size; ``image`` is no longer that of ``source``."""
        import cv2

        truth = copy.deepcopy(self.truth)
        truth.set_metainfo(dict(ori_shape=(height, width)))
        return Sample(self.image, truth, cv2.resize(self.source, (width, height), interpolation=cv2.INTER_LINEAR))

    def inputs(self, size: Sequence[int] | None) -> dict[str, np.ndarray]:
        """Return the inputs of a file; ``size`` is that of a file with a fixed size."""
        height, width = self.image.shape[:2]
        image = self.image
        if size is not None:
            image = np.zeros((*size, 3), np.uint8)
            image[:height, :width] = self.image
        return dict(image=image, valid=np.array([height, width]), original=np.array(self.original))


class _Resize:
    """The ``Resize`` of a pipeline, which keeps what it was given.

    Args:
        step: The step.
    """

    def __init__(self, step: Any):
        self.step, self.source = step, None
        self.size: Sequence[int] | None = None  # the largest size that fits into it, whatever the orientation

    def __call__(self, results: dict) -> dict:
        self.source = results['img']
        if self.size is not None:
            height, width = results['img'].shape[:2]
            factor = min(self.size[0] / height, self.size[1] / width)
            inner = self.step.transform if isinstance(self.step, NamedTransform) else self.step
            inner.scale = (max(height, width) * factor, min(height, width) * factor)
        return self.step(results)


def resize_rule(cfg: Config) -> dict[str, Any]:
    """Return how the test pipeline resizes images, see ``mmplugin.deploy.metadata``."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    rule: dict[str, Any] = {}
    for step in dataset.pipeline:
        kind, scale = str(step['type']).rpartition('.')[2], step.get('scale')
        if kind == 'Resize' and step.get('keep_ratio') and isinstance(scale, list | tuple):
            rule = dict(long=max(scale), short=min(scale))
        elif kind == 'ResizeToMultiple' and rule:
            rule['multiple'] = int(step.get('size_divisor', 32))
    if rule:
        return rule
    raise UserError(
        'the test pipeline of the config has no Resize with a scale and keep_ratio=True, so a file cannot say how to '
        'resize images'
    )


class Data:
    """The test set of a config.

    Args:
        cfg: The config.
        count: Most images; None means all.
    """

    def __init__(self, cfg: Config, count: int | None):
        cfg = copy.deepcopy(cfg)
        prepare_(cfg)
        only_warnings_on_terminal(MMLogger.get_current_instance())
        loader = dict(cfg.test_dataloader, num_workers=0, persistent_workers=False)
        loader['batch_size'] = 1
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset: Any = CommandRunner.build_dataloader(loader, seed=0).dataset
        self.dataset, self.scope, self.evaluators = dataset, cfg.default_scope, evaluator_list(cfg.test_evaluator)
        total = len(dataset)
        # Evenly spread, because files are often sorted by what they show.
        self.indices = np.linspace(0, total - 1, min(count or total, total)).round().astype(int).tolist()
        self.total = total
        self.resize = self._find_resize()

    def _find_resize(self) -> _Resize:
        steps = self.dataset.pipeline.transforms
        for i, step in enumerate(steps):
            inner = step.transform if isinstance(step, NamedTransform) else step
            if type(inner).__name__ == 'Resize':
                steps[i] = _Resize(step)
                return steps[i]
        raise UserError('the test pipeline of the config has no Resize, so a file cannot say how to resize images')

    def fit_(self, size: Sequence[int]) -> None:
        """Resize images to the largest size that fits."""
        self.resize.size = size

    def samples(self, count: int | None = None) -> Iterator[Sample]:
        """Yield images."""
        for index in self.indices[:count]:
            item = self.dataset[index]
            image = np.ascontiguousarray(item['inputs'].numpy().transpose(1, 2, 0))
            yield Sample(image, item['data_samples'], self.resize.source)

    def evaluator(self) -> Evaluator:
        """Return the metrics of the config, for the images that ``samples`` yields."""
        with DefaultScope.overwrite_default_scope(self.scope), redirect_stdout(io.StringIO()):
            evaluator = Evaluator([dict(metric) for metric in self.evaluators])
        evaluator.dataset_meta = self.dataset.metainfo
        if len(self.indices) < self.total:
            for metric in evaluator.metrics:
                if hasattr(metric, 'img_ids'):
                    metric.img_ids = [self.dataset.get_data_info(i)['img_id'] for i in self.indices]
        return evaluator


def tensors(data: Data, model: Any, size: Sequence[int], count: int) -> Iterator[Tensor]:
    """Yield images as normalized and padded tensors (1, 3, H, W).

    Args:
        data: Images, which are resized from now on to fit.
        model: The model, for its data preprocessor.
        size: Height and width.
        count: Most images.
    """
    data.fit_(size)
    for sample in data.samples(count):
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        x = model.data_preprocessor(dict(inputs=[image], data_samples=[copy.deepcopy(sample.truth)]), False)['inputs']
        height, width = sample.image.shape[:2]
        yield F.pad(x[:, :, :height, :width], (0, size[1] - width, 0, size[0] - height))


class Reference:
    """The model in PyTorch, with the post-processing of mmdet or mmseg.

    Args:
        model: The model in inference mode.
        size: Size that images are padded to; None means that of the model.
    """

    def __init__(self, model: Any, size: Sequence[int] | None):
        self.model, self.size = model, size

    def __call__(self, sample: Sample, noise: float = 0.0, seed: int = 0) -> Any:
        """Return a data sample with predictions.

        Args:
            sample: The image.
            noise: Standard deviation of noise that is added to the normalized image, and to what a head with anchors
                returns. Where features are zero, all positions have exactly the same score, whatever the image. Which
                of them comes first decides in NMS, and is up to the runtime.
            seed: Of the noise.
        """
        truth = copy.deepcopy(sample.truth)
        inputs = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        with torch.no_grad():
            data = self.model.data_preprocessor(dict(inputs=[inputs], data_samples=[truth]), False)
            x, (truth,) = data['inputs'], data['data_samples']
            if self.size is not None:
                x = self._pad(x, truth)
            if not noise:
                return self.model(x, [truth], mode='predict')[0]
            add = partial(_with_noise, noise=noise, generator=torch.Generator().manual_seed(seed))
            heads = [module for module in self.model.modules() if hasattr(module, 'prior_generator')]
            hooks = [head.register_forward_hook(lambda head, args, found: add(found)) for head in heads]
            try:
                return self.model(add(x), [truth], mode='predict')[0]
            finally:
                for hook in hooks:
                    hook.remove()

    def _pad(self, x: Tensor, truth: Any) -> Tensor:
        assert self.size is not None
        (height, width), (rows, columns) = self.size, truth.img_shape[:2]
        padding = [0, width - columns, 0, height - rows]
        truth.set_metainfo(dict(pad_shape=(height, width), batch_input_shape=(height, width)))
        truth.set_metainfo(dict(padding_size=padding, img_padding_size=padding))
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))


def _with_noise(value: Any, noise: float, generator: torch.Generator) -> Any:
    """Add noise to a tensor, or to all tensors in tuples and lists."""
    if isinstance(value, Tensor):
        return value + noise * torch.randn(value.shape, generator=generator)
    if isinstance(value, tuple | list):
        return type(value)(_with_noise(part, noise, generator) for part in value)
    return value  # heads return None for what they do not have


def file_inputs(sample: Sample, metadata: Metadata) -> dict[str, np.ndarray]:
    """Return what a file takes of an image."""
    if metadata.resizes:
        return dict(image=np.ascontiguousarray(sample.source))
    return sample.inputs(None if metadata.dynamic else metadata.size)


def as_data_sample(outputs: dict[str, np.ndarray], sample: Sample, metadata: Metadata) -> Any:
    """Return the answers of a file as a data sample of mmdet or mmseg."""
    truth = copy.deepcopy(sample.truth)
    if metadata.kind == 'classes':
        truth.set_data(dict(pred_sem_seg=PixelData(data=torch.from_numpy(outputs['classes'].astype(np.int64))[None])))
        return truth
    found = {'bboxes': outputs['boxes'], 'scores': outputs['scores'], 'labels': outputs['labels']}
    if metadata.full_masks:
        found['masks'] = outputs['masks'].astype(bool)
    elif metadata.kind == 'masks':
        assert metadata.mask_threshold is not None
        found['masks'] = paste_masks(outputs['masks'], outputs['boxes'], *sample.original, metadata.mask_threshold)
    truth.pred_instances = InstanceData(**{name: torch.from_numpy(value) for name, value in found.items()})
    return truth


class Score:
    """The metrics of a config, fed with one prediction at a time."""

    def __init__(self, data: Data):
        self.evaluator, self.scope, self.count = data.evaluator(), data.scope, 0

    def add(self, prediction: Any) -> None:
        """Add a data sample with predictions."""
        with DefaultScope.overwrite_default_scope(self.scope):
            self.evaluator.process([prediction])
        self.count += 1

    def values(self) -> dict[str, float]:
        """Return the metrics; AP with all digits."""
        quiet, digits = redirect_stdout(io.StringIO()), all_digits(self.evaluator.metrics)
        with DefaultScope.overwrite_default_scope(self.scope), quiet, digits:
            return self.evaluator.evaluate(self.count)


@contextmanager
def all_digits(metrics: Sequence[Any]) -> Iterator[None]:
    """Let mmdet return AP as it is: rounded to three digits, 0.0075 and a little less would differ by 0.001."""
    modules = {base.__module__ for metric in metrics for base in type(metric).__mro__}
    scopes = [vars(sys.modules[name]) for name in modules if name.startswith('mmdet.')]
    for names in scopes:
        names['round'] = lambda value, digits: value  # found before Python's own
    try:
        yield
    finally:
        for names in scopes:
            del names['round']
