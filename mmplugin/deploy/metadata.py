"""What an exported file says about itself, and the interface of its inputs and outputs.

The metadata are one JSON text: in ONNX the entry ``mmplugin`` of ``metadata_props`` (onnxruntime:
``session.get_modelmeta().custom_metadata_map``), in OpenVINO's IR the entry ``mmplugin`` of ``rt_info``, in ``.pt2``
the extra file ``mmplugin.json``. This module needs the standard library only.

Inputs, by the field ``input``:

``image``
    ``image``, uint8 (height, width, 3), channels blue, green, red: the image after resizing, in the upper left corner.
    A file of a fixed size takes exactly ``size``: pad the rest with anything, it is not seen. A dynamic file takes any
    size from ``min_size`` on, and needs no padding. Normalization, the order of channels, and padding to a multiple of
    32 are in the file.
    ``valid``, int64 (2,): height and width of the part of ``image`` that is not padding.
    ``original``, int64 (2,): height and width of the image before resizing. Boxes and class maps are returned at this
    size; pass ``valid`` again to get them at the size of ``image``.
    With ``resizes``, the file takes ``image`` only, of any size, and resizes it as the field ``resize`` says.
    Results are in its pixels.
``tensor``
    ``tensor``, float32 (1, 3, height, width), normalized by ``mean`` and ``std`` in the order of ``tensor_channels``,
    both sides multiples of 32. Results are in pixels of the tensor.

How to resize, by the field ``resize``: ``{"fit": [height, width]}`` is the largest size that fits, with the same ratio
of sides; ``{"long": a, "short": b}`` is the largest size whose long side is at most a and whose short side at most b.
Each new side is ``int(side * factor + 0.5)``, bilinear without antialiasing, as ``cv2.resize``. With ``"multiple": c``
the result is resized again in the same way, each side up to the next multiple of c: configs of segmentation do so.

Outputs, by the field ``kind``:

``boxes``
    ``boxes`` float32 (n, 4): x1, y1, x2, y2; ``scores`` float32 (n,), best first; ``labels`` int64 (n,), indices of
    ``classes``.
``masks``
    In addition ``masks`` float32 (n, side, side): the probability of the object on a grid over its box; a pixel belongs
    to the object from ``mask_threshold`` on, after bilinear interpolation at the centers of pixels: ``masks.py``. With
    ``full_masks``, it is ``masks`` bool (n, height, width) at the size ``original``.
``classes``
    ``classes`` (height, width) at the size ``original``: uint8 up to 256 classes, else int32. With ``logits``, it is
    ``logits`` float32 (classes, height, width).
``features``
    ``stride4``, ``stride8``, ...: float32 (1, channels, ceil(height / stride), ceil(width / stride)). Backbones and
    necks have the input ``tensor`` only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

KEY = 'mmplugin'
FORMAT = 1  # of the metadata; raised by changes that a reader has to know
KINDS = ('boxes', 'masks', 'classes', 'features')
INPUTS = ('image', 'tensor')


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported file.

    Args:
        name: Name of the config.
        kind: What the file returns, one of ``KINDS``.
        input: What the file takes, one of ``INPUTS``.
        size: Height and width; of a dynamic file, those that it was traced at.
        dynamic: Whether other sizes are allowed.
        min_size: The least lengths of the short and of the long side of the input. Below them, a dynamic file runs and
            is wrong.
        resize: How images are resized, see the module.
        resizes: Whether the file does it.
        classes: Names of the classes.
        palette: Colors of the classes, red, green, blue.
        score_threshold: Objects below it are not returned.
        max_boxes: Most objects of one image.
        mask_threshold: Probability from which a pixel belongs to an object.
        full_masks: Whether masks are returned at the size of the original image, in place of grids.
        logits: Whether logits are returned in place of a class map.
        mean: Mean of each channel of the tensor.
        std: Standard deviation of each channel of the tensor.
        tensor_channels: Order of the channels of the tensor: RGB or BGR.
        backbone: Type and arch of the backbone.
        checkpoint_sha256: Hash of the checkpoint.
        versions: Versions of the packages that wrote the file.
        int8: Whether layers compute in 8 bits.
        format: ``FORMAT``.
    """

    name: str
    kind: str
    input: str
    size: tuple[int, int]
    dynamic: bool
    min_size: tuple[int, int]
    resize: dict[str, Any]
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    score_threshold: float | None = None
    max_boxes: int | None = None
    mask_threshold: float | None = None
    resizes: bool = False
    full_masks: bool = False
    logits: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    tensor_channels: str = 'RGB'
    backbone: dict[str, Any] = field(default_factory=dict)
    checkpoint_sha256: str = ''
    versions: dict[str, str] = field(default_factory=dict)
    int8: bool = False
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the text that is stored in a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'Metadata':
        """Read the text of a file.

        Raises:
            ValueError: The text is not that of this format.
        """
        content = json.loads(text)
        if not isinstance(content, Mapping) or content.get('format') != FORMAT:
            raise ValueError('the metadata are not those of a file that this version of mmplugin exports')
        known = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        for name in ('size', 'min_size', 'classes', 'mean', 'std'):
            known[name] = tuple(known.get(name, ()))
        known['palette'] = tuple(tuple(color) for color in known.get('palette', ()))
        return cls(**known)


def sha256(path: str | Path) -> str:
    """Return the hash of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
