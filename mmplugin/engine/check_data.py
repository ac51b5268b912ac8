"""The command ``check-data``: check the datasets of a config before training."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mmplugin.config_edits import is_classification, is_segmentation
from mmplugin.data.check_coco import check_coco
from mmplugin.data.check_seg import check_seg
from mmplugin.data.sheet import draw_sheet
from mmplugin.engine.arguments import CfgOptions
from mmplugin.engine.config import load_config
from mmplugin.engine.data_options import add_data_arguments, data_options
from mmplugin.engine.work_dir import prepare_folder
from mmplugin.errors import UserError
from mmplugin.findings import ERROR, NOTE, WARNING, Finding, by_severity, has_errors
from mmplugin.text import printable

_STYLE = {ERROR: 'bold red', WARNING: 'yellow', NOTE: 'dim'}


def check_config(cfg: Config, fast: bool = False) -> list[Finding]:
    """Compare the datasets that a config names with its settings; errors come first.

    Args:
        cfg: A detection or segmentation config.
        fast: Read JSON files and folders, and open only a few images and masks.
    """
    if not any(cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')):
        raise UserError(
            f'{cfg.filename} has no dataset: it defines none of train_dataloader, val_dataloader and test_dataloader. '
            'Use a config for training, such as configs/detection/maskrcnn_v2_s2.py'
        )
    if is_classification(cfg):
        from mmplugin.classification.check import check_folders

        findings = check_folders(cfg, fast)
    else:
        findings = check_seg(cfg, fast) if is_segmentation(cfg) else check_coco(cfg, fast)
    return by_severity(dict.fromkeys(findings))  # train, val and test share heads and often files


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print findings as a table."""
    console = console or Console()
    if not findings:
        console.print('No problems found: dataset and config agree.')
        return
    # One column for everything but the severity: with more, an 80-character terminal would cut paths and settings.
    table = Table('', Column('problem, where it is, and how to fix it', overflow='fold'), show_lines=True)
    for finding in findings:
        problem, where, fix = (printable(part, keep='\n') for part in (finding.problem, finding.where, finding.fix))
        text = Text.assemble(problem, ('\nwhere  ', 'dim'), where, ('\nfix    ', 'dim'), fix)
        table.add_row(Text(finding.severity, style=_STYLE[finding.severity]), text)
    console.print(table)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return 2 if there are errors that must be fixed before training, else 0."""
    parser = argparse.ArgumentParser(prog=prog, description='Check the datasets of a config before training.')
    parser.add_argument('config', help='a config file, or the name of a config of mmplugin')
    parser.add_argument('--fast', action='store_true', help='JSON and folders, and only a few images and masks')
    add_data_arguments(parser)
    parser.add_argument('--sheet', help='image file with examples to look at; default: sheet.jpg in the work folder')
    parser.add_argument('--work-dir', help='folder of converted data and of the sheet; default: work_dirs/CONFIG')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, help='settings to override: key=value ...')
    options = parser.parse_args(argv)
    cfg = load_config(
        options.config,
        data_root=options.data_root,
        classes=options.classes.split(',') if options.classes else None,
        data_options=data_options(options),
        work_dir=options.work_dir,
        cfg_options=options.cfg_options,
    )
    findings = check_config(cfg, options.fast)
    show(findings)
    if has_errors(findings):
        return 2
    folder = Path(options.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(options.config).stem}')
    target = Path(options.sheet or folder / 'sheet.jpg')
    prepare_folder(target.parent, '--sheet' if options.sheet else '--work-dir')
    if draw_sheet(cfg, target):
        console = Console(highlight=False)
        console.print(f'Examples as training reads them (look whether the classes are right): {target}', soft_wrap=True)
    return 0
