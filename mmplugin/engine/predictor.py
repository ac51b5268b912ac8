"""Predictor: a trained model that takes images and returns arrays."""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps

from mmplugin import stack
from mmplugin.config_edits import dicts, is_segmentation, refuse_classification, replace_sync_norms_, set_classes_
from mmplugin.convert import checkpoint_io
from mmplugin.data.splits import splits
from mmplugin.engine import weights
from mmplugin.engine.config import load_config
from mmplugin.engine.prediction import Prediction
from mmplugin.engine.resume import find_last_checkpoint
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError
from mmplugin.files import reason, require_file
from mmplugin.image_files import check_image
from mmplugin.memory import release_freed_memory
from mmplugin.palette import palette
from mmplugin.text import printable

GPU_BATCH = 8  # images at once on a GPU; on a CPU, more than one does not help
SCORE = 0.3
RELEASE_EVERY = 8  # changes of the image size between two releases of freed memory, which take milliseconds
MOST_CLASSES = 100_000  # that the names in a checkpoint may ask for

ImageLike = str | Path | np.ndarray | Image.Image


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that went through the test pipeline of the config.

    Args:
        image: The image before the pipeline, BGR.
        path: Its file, if any.
        inputs: What the model takes, ``(channels, height, width)``.
        sample: Sizes and scale factors, which the model needs to return to the size of the image.
    """

    image: np.ndarray
    path: str | None
    inputs: torch.Tensor
    sample: Any


class Predictor:
    """A trained detector or segmentor that takes images and returns arrays.

    Every image goes through the test pipeline of the config, so the results are those of ``mmplugin test``.

    Args:
        config: A work folder, a config file, the name of a config, or a loaded config.
        checkpoint: Weights of the whole model. Default: the best or the last checkpoint of the work folder.
        device: Such as ``cpu`` or ``cuda:1``; default: a GPU if there is one.
        score: Objects with a lower score are dropped.
        batch: Images at once; default: 8 on a GPU, 1 on a CPU. Images of different sizes are never padded to one size,
            so the results do not depend on it.
        trust: Run code that the checkpoint may contain; only for files of people you trust.
        allow_partial: Predict although tensors of the checkpoint do not fit the model.

    Attributes:
        classes: Class names: those in the checkpoint, else those of the config.
        is_segmentation: Whether results have a class map instead of boxes.
        has_masks: Whether objects have masks.
        fit: How the weights compare with the model.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        score: float = SCORE,
        batch: int | None = None,
        trust: bool = False,
        allow_partial: bool = False,
    ):
        self.device = find_device(device)
        if not isinstance(config, Config):
            if checkpoint is None:
                config, checkpoint = find_in_work_folder(config)
            elif Path(config).is_dir():
                config = find_config_in(Path(config))
            config = load_config(config)
        if checkpoint is None:
            raise UserError('the predictor needs a checkpoint: name one, or name a work folder instead of the config')
        cfg = copy.deepcopy(config)
        refuse_classification(cfg, 'prediction')
        content = checkpoint_io.read(checkpoint, trust)
        self.score = score
        self.batch = batch or (GPU_BATCH if self.device.type == 'cuda' else 1)
        self.is_segmentation = is_segmentation(cfg)
        self.has_masks = not self.is_segmentation and any('mask_head' in node for node in dicts(cfg.model))
        self.classes = _use_classes_(cfg, content)
        self.model: Any = _build(cfg).to(self.device).eval()
        load_weights = weights.load_partially if allow_partial else weights.load_exactly
        self.fit = load_weights(self.model, weights.state_dict_of(content, checkpoint), checkpoint)
        self._load, self._steps = _build_pipeline(cfg)
        self._size_changes, self._last_size = 0, torch.Size()

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """Predict one image, or a list of images.

        Args:
            images: A path, an array of 8 or 16 bits with channels in the order blue, green, red, as OpenCV and mmcv
                read it (or gray, or with alpha), a PIL image, or a list of these.
        """
        if isinstance(images, ImageLike):
            return self.predict([self.prepare(images)])[0]
        found = []
        for start in range(0, len(images), self.batch):
            found += self.predict([self.prepare(image) for image in images[start : start + self.batch]])
        return found

    def prepare(self, image: ImageLike) -> Prepared:
        """Load an image, and run the test pipeline of the config.

        Raises:
            UserError: The image cannot be read; the message names it.
        """
        path = str(image) if isinstance(image, str | Path) else None
        pixels = self._read(path) if path is not None else _as_bgr(image)
        name = path or f'an array of {"x".join(map(str, pixels.shape))}'
        shape = pixels.shape[:2]
        results = dict(img=pixels, img_shape=shape, ori_shape=shape, img_path=path or '', img_id=0)
        try:
            for step in self._steps:
                results = step(results)
        except Exception as error:  # sides of 0 pixels after resizing, and whatever a user's own transform raises
            problem = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f'{name} cannot be resized for the model ({problem[0]})') from error
        return Prepared(pixels, path, results['inputs'], results['data_samples'])

    def predict(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """Run the model. Only images of the same size after the pipeline share a batch, which needs no padding."""
        groups: dict[torch.Size, list[int]] = {}
        for i, image in enumerate(prepared):
            groups.setdefault(image.inputs.shape, []).append(i)
        found: dict[int, Prediction] = {}
        for indices in groups.values():
            chosen = [prepared[i] for i in indices]
            data = dict(inputs=[image.inputs for image in chosen], data_samples=[image.sample for image in chosen])
            with torch.no_grad():
                samples = self.model.test_step(data)
            found.update({i: self._result(prepared[i], sample) for i, sample in zip(indices, samples, strict=True)})
        self._release_memory(groups)
        return [found[i] for i in range(len(prepared))]

    def _release_memory(self, sizes: Iterable[torch.Size]) -> None:
        """Release freed memory after every so many images whose size differs from that of the image before."""
        for size in sizes:
            self._size_changes += size != self._last_size
            self._last_size = size
        if self._size_changes >= RELEASE_EVERY:
            self._size_changes = 0
            release_freed_memory()

    def _read(self, path: str) -> np.ndarray:
        """Read a file as the first step of the pipeline does: 8 bits, three channels, turned as its EXIF data says."""
        file = Path(path).expanduser()
        if file.is_dir():
            raise UserError(f'{path} is a folder; use the images in it, or `mmplugin predict`')
        if not file.exists():
            raise UserError(f'{path} does not exist')
        try:
            if require_file(file).st_size == 0:
                raise UserError(f'{path} is empty')
            check_image(file)
            return self._load(dict(img_path=str(file)))['img']
        except UserError:
            raise
        except OSError as error:
            raise UserError(f'{path} cannot be read: {reason(error)}') from error
        except Exception as error:  # decoders raise anything: SyntaxError, cv2.error, AssertionError of mmcv
            raise UserError(f'{path} is not an image that can be decoded, or damaged') from error

    def _result(self, prepared: Prepared, sample: Any) -> Prediction:
        if self.is_segmentation:
            kind = np.uint8 if len(self.classes) <= np.iinfo(np.uint8).max else np.uint16
            class_map = sample.pred_sem_seg.data[0].cpu().numpy().astype(kind)
            return Prediction(prepared.image, self.classes, prepared.path, class_map=class_map)
        objects = sample.pred_instances
        objects = objects[objects.scores >= self.score].cpu()
        return Prediction(
            prepared.image,
            self.classes,
            prepared.path,
            boxes=getattr(objects.bboxes, 'tensor', objects.bboxes).numpy(),
            scores=objects.scores.numpy(),
            labels=objects.labels.numpy(),
            masks=np.asarray(objects.masks, dtype=bool) if 'masks' in objects else None,
        )


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Return a device that exists; by default a GPU if there is one."""
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        allowed = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        raise UserError(f"device '{name}' cannot be used here; allowed: {', '.join(allowed)}") from error
    return device


def find_in_work_folder(folder: str | Path) -> tuple[Path, Path]:
    """Return the config that a training wrote into its work folder, and its best checkpoint, else its last one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder} is not a work folder; name one, or a config and a checkpoint')
    config = find_config_in(folder)
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    if best:
        return config, best[-1]
    if not any(folder.glob('*.pth')):
        raise UserError(f'{folder} has no checkpoint (epoch_N.pth or iter_N.pth); train first, or name a checkpoint')
    try:
        return config, find_last_checkpoint(folder)
    except UserError as error:
        problem = str(error).removeprefix('--resume: ').partition('. No training')[0].partition('; train without')[0]
        raise UserError(f'{problem}. Name the checkpoint to use') from error


def find_config_in(folder: Path) -> Path:
    """Return the config that a training wrote into its work folder."""
    found = sorted(folder.glob('*.py'))
    if len(found) != 1:
        names = f'{len(found)} configs ({", ".join(path.name for path in found)})' if found else 'no config (NAME.py)'
        raise UserError(f'{folder} has {names}; name the config and the checkpoint instead of the folder')
    return found[0]


def _use_classes_(cfg: Config, checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names of a checkpoint, for which the heads are adapted, else those of the config."""
    counts = {node['num_classes'] for node in dicts(cfg.model) if 'num_classes' in node}
    names = _saved_classes(checkpoint)
    if names:
        if counts != {len(names)}:
            set_classes_(cfg, names, palette(len(names)))
        return names
    test_sets = [split for split in splits(cfg) if split.name == 'test'] or splits(cfg)
    known = test_sets[0].classes if test_sets else None
    count = max(counts, default=0)
    if isinstance(known, list | tuple) and len(known) == count:
        return tuple(map(str, known))
    return tuple(f'class {i}' for i in range(count))


def _saved_classes(checkpoint: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names in the metadata of a checkpoint, if they are what training writes there."""
    node: Any = checkpoint
    for key in ('meta', 'dataset_meta'):
        node = node.get(key) if isinstance(node, Mapping) else None
    names = (node.get('classes') or node.get('CLASSES')) if isinstance(node, Mapping) else None
    if not isinstance(names, list | tuple) or not 0 < len(names) <= MOST_CLASSES:
        return None
    return tuple(map(printable, names)) if all(isinstance(name, str) for name in names) else None


def _build(cfg: Config) -> torch.nn.Module:
    cfg.model.backbone.init_cfg = None  # the checkpoint has all weights
    replace_sync_norms_(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # mmdet and mmseg emit many while they build
        return build_model(cfg)


def _build_pipeline(cfg: Config) -> tuple[Any, list[Any]]:
    """Build the test pipeline without annotations: the step that loads the image, and the steps after it."""
    scope = 'mmseg' if is_segmentation(cfg) else 'mmdet'
    stack.import_quietly(f'{scope}.datasets')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:  # wrappers
        dataset = dataset.dataset
    steps = [step for step in dataset.pipeline if _name(step) != 'LoadAnnotations']
    if not steps or _name(steps[0]) != 'LoadImageFromFile':
        raise UserError(
            'test_dataloader.dataset.pipeline of the config must begin with LoadImageFromFile, not '
            f'{_name(steps[0]) if steps else "be empty"}'
        )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        load, *others = map(import_module(f'{scope}.registry').TRANSFORMS.build, steps)
    return load, others


def _name(step: Mapping[str, Any]) -> str:
    kind = step['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _as_bgr(image: Any) -> np.ndarray:
    """Return an array or a PIL image as an array of 8 bits, with channels in the order blue, green, red."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I;16'):
            return _as_bgr(np.asarray(image))
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])
    if not isinstance(image, np.ndarray):
        raise UserError(f'an image is a {type(image).__name__}; allowed: a path, a numpy array, a PIL image')
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)  # as OpenCV reads files of 16 bits
    shape = 'x'.join(map(str, image.shape))
    if image.dtype != np.uint8 or image.size == 0 or image.ndim not in (2, 3):
        raise UserError(
            f'an image is an array of {shape} and type {image.dtype}; expected uint8 or uint16 and height x width, '
            'with or without channels'
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    elif channels not in (3, 4):
        raise UserError(f'an image is an array of {shape}; expected height x width x 1, 3 or 4 channels')
    return np.ascontiguousarray(image[..., :3])
