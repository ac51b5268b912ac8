"""Exported files for the command ``predict``: their predictor, with the errors of mmplugin."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmplugin.deploy import predictor
from mmplugin.errors import UserError

SUFFIXES = ('.onnx', '.xml')


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors of the lone module into those of mmplugin."""
    try:
        yield
    except predictor.PredictorError as error:
        raise UserError(str(error)) from error


class ExportedPredictor:
    """A file in place of a config and a checkpoint.

    Args:
        file: What ``mmplugin export`` wrote.
        score: Objects with a lower score are dropped.

    Attributes:
        classes: Class names.
        is_segmentation: Whether results have a class map instead of boxes.
        has_masks: Whether objects have masks.
        device: Name and version of the runtime.
        batch: Images at once.
    """

    batch = 1

    def __init__(self, file: str | Path, score: float):
        with user_errors():
            self._predictor = predictor.Predictor(file, score=score)
        self.classes, self.device = self._predictor.classes, self._predictor.runtime
        self.is_segmentation, self.has_masks = self._predictor.is_segmentation, self._predictor.has_masks

    def prepare(self, image: predictor.ImageLike) -> predictor.Prepared:
        """Load and resize an image."""
        with user_errors():
            return self._predictor.prepare(image)

    def predict(self, prepared: Sequence[predictor.Prepared]) -> list[predictor.Prediction]:
        """Run the file, image by image."""
        with user_errors():
            return [self._predictor.predict(image) for image in prepared]
