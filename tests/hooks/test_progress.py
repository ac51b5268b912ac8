"""What ProgressHook prints without a terminal."""

import io
import logging

from mmengine.logging import MessageHub
from rich.console import Console

from mmplugin.hooks.progress import ProgressHook, only_warnings_on_terminal, summary


class _Runner:
    max_iters, iter = 100, 19
    train_dataloader = val_dataloader = range(4)

    def __init__(self):
        self.message_hub = MessageHub('test_progress')
        for loss in (1.0, 3.0):
            self.message_hub.update_scalar('train/loss', loss)
            self.message_hub.update_scalar('train/loss_cls', loss / 2)
        for mode in ('train', 'val'):
            self.message_hub.update_scalar(f'{mode}/time', 0.5)
            self.message_hub.update_scalar(f'{mode}/data_time', 0.1)


def test_a_line_has_mean_losses_speed_wait_and_remaining_time():
    hook, runner, text = ProgressHook(every=0), _Runner(), io.StringIO()
    hook.console = Console(file=text)
    hook.after_train_iter(runner, 19, outputs={'loss': 3.0, 'loss_cls': 1.5})
    hook.after_val_iter(runner, 3)
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.25, 'coco/fish_precision': 0.5})
    assert text.getvalue().splitlines() == [
        'train 20/100 | loss 2.000 cls 1.000 | 2.00 it/s, 20% waiting for data | 40s left',
        'val 4/4 | 2.00 it/s, 20% waiting for data | 0s left',
        'val bbox_AP 0.25',
    ]


def test_lines_are_rare():
    hook, runner, text = ProgressHook(every=1000), _Runner(), io.StringIO()
    hook.console = Console(file=text)
    hook.last_line = float('inf')
    hook.after_val_iter(runner, 0)
    hook.after_val_iter(runner, 3)
    assert text.getvalue().count('\n') == 1, 'only the last iteration'


def test_the_summary_names_results_whatever_their_prefix():
    assert summary({'coco/segm_mAP_50': 0.5, 'val/mIoU': 40.0, 'time': 1.0}) == 'segm_AP_50 0.5, mIoU 40'


def test_only_warnings_reach_the_terminal():
    logger, text = logging.Logger('test'), io.StringIO()
    logger.addHandler(logging.StreamHandler(text))
    only_warnings_on_terminal(logger)
    logger.info('hooks')
    logger.warning('X is deprecated')
    logger.warning('the learning rate is 0')
    assert text.getvalue() == 'the learning rate is 0\n'
