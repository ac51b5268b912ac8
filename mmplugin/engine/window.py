"""A window on the user's screen."""

import os
import sys

import cv2
import numpy as np
from PIL import Image

from mmplugin.errors import UserError

TITLE = 'mmplugin'
ESCAPE = 27


class Window:
    """A window that shows drawings. Closing it, ``q`` or Escape ends the program."""

    def __init__(self) -> None:
        hint = 'omit --show and open the images in --out-dir'
        if sys.platform.startswith('linux') and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
            raise UserError(f'--show requires a display, and this session has none (DISPLAY is not set); {hint}')
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise UserError(
                '--show requires an OpenCV with windows: install opencv-python instead of opencv-python-headless, or '
                f'{hint}'
            ) from error

    def show(self, drawing: Image.Image, wait: bool) -> bool:
        """Show a drawing.

        Args:
            drawing: What to show.
            wait: Wait for a key.

        Returns:
            Whether the user wants to go on.
        """
        cv2.imshow(TITLE, np.ascontiguousarray(np.asarray(drawing)[..., ::-1]))
        key = cv2.waitKey(0 if wait else 1)
        return key not in (ord('q'), ESCAPE) and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) > 0

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()
