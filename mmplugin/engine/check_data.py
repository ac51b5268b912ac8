"""`tools/check_data.py`: reads a user's data before training does, and says which line to change."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mmplugin.config_edits import is_segmentation
from mmplugin.data.check_coco import check_coco
from mmplugin.data.check_seg import check_seg
from mmplugin.data.findings import ERROR, Finding
from mmplugin.engine.config import Settings, load_config
from mmplugin.errors import UserError

_STYLE = {'error': 'bold red', 'warning': 'yellow', 'note': 'dim'}


def check_config(cfg: Config, fast: bool = False) -> list[Finding]:
    """Compares the data that a config names with what the config says of them; errors come first.

    Args:
        cfg: A detection or segmentation config.
        fast: Only what JSON files and folders say, and a handful of images and masks.
    """
    if not any(cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')):
        raise UserError(
            f'{cfg.filename} names no data: none of train_dataloader, val_dataloader, test_dataloader is in it; '
            'name a config for training, such as configs/detection/maskrcnn_v2_s2.py'
        )
    findings = check_seg(cfg, fast) if is_segmentation(cfg) else check_coco(cfg, fast)
    unique = list(dict.fromkeys(findings))  # train, val and test share heads and often files
    return sorted(unique, key=lambda finding: list(_STYLE).index(finding.severity))


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Prints the findings as a table."""
    console = console or Console()
    if not findings:
        console.print('Nothing found: data and config agree.')
        return
    # two columns: beside three more, paths and the lines to paste would be cut at 80 characters
    table = Table('', Column('what, where, and the line to change', overflow='fold'), show_lines=True)
    for finding in findings:
        text = Text.assemble(finding.what, ('\nat      ', 'dim'), finding.where, ('\nchange  ', 'dim'), finding.mend)
        table.add_row(Text(finding.severity, style=_STYLE[finding.severity]), text)
    console.print(table)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Returns 0, or 2 if something was found that has to be mended before training."""
    parser = argparse.ArgumentParser(prog=prog, description="Check a config's data before training does.")
    parser.add_argument('config', help='a config file, or the name of one')
    parser.add_argument('--fast', action='store_true', help='JSON and folders only, and a handful of images')
    parser.add_argument('--data-root', help='folder of your own data')
    parser.add_argument('--classes', help='your class names, separated by commas')
    parser.add_argument('--cfg-options', nargs='+', action=Settings, help='settings to override: key=value ...')
    options = parser.parse_args(argv)
    classes = options.classes.split(',') if options.classes else None
    cfg = load_config(options.config, data_root=options.data_root, classes=classes, cfg_options=options.cfg_options)
    findings = check_config(cfg, options.fast)
    show(findings)
    return 2 if any(finding.severity == ERROR for finding in findings) else 0
