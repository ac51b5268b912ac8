"""Data in the layouts that people have, read into one form.

The readers use the standard library and PyYAML rather than a library of layouts. supervision 0.26 drops VOC's difficult
objects and COCO's crowds, decodes every image to know its size, reads an image without XML file as one without objects,
and requires scipy and a second OpenCV. datumaro 1.13 requires 18 packages, among them pyarrow and pandas, in versions
that exclude others. Neither stops with the name of the file and the line where one is invalid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmplugin.data.layouts import coco, labelme, voc, yolo
from mmplugin.data.layouts.records import Reading
from mmplugin.data.layouts.tree import Tree
from mmplugin.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How one tool stores its annotations.

    Args:
        title: Its usual name.
        find: Returns the annotation files of this layout, which are few or many; empty if it is another layout.
        read: Reads all images.
    """

    title: str
    find: Callable[[Tree], list[str]]
    read: Callable[[Tree, list[str] | None], Reading]


LAYOUTS = {
    'coco': Layout('COCO', coco.find, coco.read),
    'voc': Layout('Pascal VOC', voc.find, voc.read),
    'yolo': Layout('YOLO', yolo.find, yolo.read),
    'labelme': Layout('LabelMe', labelme.find, labelme.read),
}


def find_layout(tree: Tree, allowed: Sequence[str] = ()) -> str | None:
    """Return the name of the layout in a folder; None if it has none of them.

    Args:
        tree: The user's folder.
        allowed: Layouts to look for; default: all.

    Raises:
        UserError: If it has files of several layouts.
    """
    found = {name: files for name in allowed or LAYOUTS if (files := LAYOUTS[name].find(tree))}
    if len(found) > 1:
        listed = '; '.join(f'{LAYOUTS[name].title}: {len(files)}, such as {files[0]}' for name, files in found.items())
        choice = ' or '.join(f'--layout {name}' for name in found)
        raise UserError(f'{tree.root} has annotation files in several layouts ({listed}). Choose with {choice}')
    return next(iter(found), None)


def require_files(tree: Tree, layout: str) -> None:
    """Raise a ``UserError`` if a folder has no annotation files in the layout that the user chose."""
    if not LAYOUTS[layout].find(tree):
        raise UserError(f'--layout {layout}: {tree.root} has no {LAYOUTS[layout].title} annotations')
