"""Images are refused before they are decoded if their header states more pixels than any camera has.

A PNG file of one megabyte can state 30000x30000 pixels, which take gigabytes in memory.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from mmplugin.errors import UserError
from mmplugin.files import require_file

# Image formats that OpenCV reads, too. For some others, Pillow starts programs, such as Ghostscript.
FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'PPM', 'GIF', 'JPEG2000')
MOST_PIXELS = 1 << 28  # cameras have up to 200 million
MOST_MASK_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or MOST_PIXELS)  # Pillow, with which mmseg reads masks, refuses more
# What Pillow raises for damaged files; SyntaxError is for PNG.
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
PREFIX = 16  # bytes by which Pillow recognizes a format


@contextmanager
def open_image(path: str | Path, most: int = MOST_PIXELS) -> Iterator[Image.Image]:
    """Open an image without decoding it.

    ``Image.open`` would refuse images of 200 million pixels, and wait for a named pipe.

    Args:
        path: The file.
        most: Number of pixels from which on the image is refused.

    Raises:
        UserError: If the file is not a regular file, or the image has too many pixels.
        UnidentifiedImageError: If the format is not one of ``FORMATS``.
    """
    require_file(path)
    with open(path, 'rb') as file:
        image = _identify(file, str(path))
        with image:
            width, height = image.size
            if width * height > most:
                raise UserError(
                    f'{path} has {width}x{height} pixels, but the limit is {most:,}; cut it into tiles, or remove it'
                )
            yield image


def _identify(file: BinaryIO, path: str) -> Image.Image:
    prefix = file.read(PREFIX)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:  # a Pillow without this format
            continue
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(prefix) is True:
            file.seek(0)
            try:
                return factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open: another format may fit
                continue
    raise UnidentifiedImageError(f'cannot identify image file {path!r}')


def check_image(path: str | Path, most: int = MOST_PIXELS) -> None:
    """Raise a ``UserError`` if a file should not be given to a decoder; what else is wrong, the decoder says.

    Args:
        path: The file. One that does not exist is left to the decoder: it may be on a server.
        most: Number of pixels from which on the image is refused.
    """
    try:
        with open_image(path, most):
            pass
    except UserError:
        raise
    except Exception:  # headers that Pillow cannot read
        return
