"""Command-line options that describe the user's data, for training, testing and checks."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from mmplugin.data.layouts import LAYOUTS
from mmplugin.data.layouts.partition import VAL_SHARE
from mmplugin.errors import UserError

MASKS = 'masks'  # the layout of segmentation data with a mask for each image


@dataclass(frozen=True)
class DataOptions:
    """How to read the user's data where it does not say so itself.

    Args:
        layout: One of ``LAYOUTS``, or ``masks``; None to recognize it.
        val_share: Share of the images to draw for validation if there is no validation set.
        label_table: File with the color or number of each class.
        unlabelled: Values, colors or names of pixels that count neither in training nor in evaluation.
        background: Name of the class of all other pixels, which have the value 0.
    """

    layout: str | None = None
    val_share: float = VAL_SHARE
    label_table: Path | None = None
    unlabelled: tuple[str, ...] = ()
    background: str | None = None


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not between 0 and 1, such as 0.2')
    return value


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe the user's data."""
    parser.add_argument('--data-root', help='folder of your data (with --mini: folder of the built-in data set)')
    parser.add_argument('--classes', help='class names, separated by commas; default: those in the annotations')
    parser.add_argument('--layout', choices=(*LAYOUTS, MASKS), help='layout of the annotations; default: recognized')
    parser.add_argument(
        '--val-share', type=_share, help=f'share of images for validation if there is no such set ({VAL_SHARE})'
    )
    parser.add_argument('--label-table', help='file with the color or number of each class in the masks')
    parser.add_argument(
        '--unlabelled', '--unlabeled', help='values, #colors or names in the masks that are not a class, by commas'
    )
    parser.add_argument('--background', help='name of the class of value 0, or of pixels outside all polygons')


def data_options(options: argparse.Namespace) -> DataOptions:
    """Return what the arguments say about the data."""
    names = ('layout', 'val_share', 'label_table', 'unlabelled', 'background')
    given = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if given and (options.data_root is None or getattr(options, 'mini', False)):
        flag = next(iter(given)).replace('_', '-')
        raise UserError(f'--{flag} describes your own data: give its folder with --data-root, without --mini')
    if 'unlabelled' in given:
        given['unlabelled'] = tuple(word.strip() for word in given['unlabelled'].split(','))
    if 'label_table' in given:
        given['label_table'] = Path(given['label_table'])
    return DataOptions(**given)
