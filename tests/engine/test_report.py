"""What a work folder holds: checkpoints, the report, and a config that the libraries' own tools can use."""

import os
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_training import IMPORT_FIRST, ROOT, run_training, tiny_config

from mmplugin import stack
from mmplugin.engine import test
from mmplugin.engine.curves import read_scalars
from mmplugin.engine.resume import find_last_checkpoint

pytestmark = pytest.mark.usefixtures('tiny_sets')


class _Balance(HTMLParser):
    """Checks that every element is closed in the order in which it was opened."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        if tag not in ('meta', 'link', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _read_report(work_dir: Path, words: list[str]) -> _Balance:
    page = (work_dir / 'report.html').read_text()
    assert 'http' not in re.sub(r'<pre>.*</pre>', '', page, flags=re.S), 'the report must work offline'
    for word in words:
        assert word in page
    assert page.count('data:image/jpeg;base64') == 2
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    return balance


def _run_script(code: str) -> None:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', f'{IMPORT_FIRST}\n{code}']
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def test_detection_report_best_checkpoint_and_inferencer(tmp_path: Path, capfd: pytest.CaptureFixture):
    """A fresh process finds the same boxes as the command ``test``."""
    changes = {
        'model.test_cfg.rcnn.score_thr': 0.0,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'train_cfg.val_begin': 1,
        'default_hooks.checkpoint.save_best': 'coco/segm_mAP',
    }
    config = tiny_config('maskrcnn_v2_s0', tmp_path / 'config', **changes)
    work_dir = tmp_path / 'run'
    run_training(config, work_dir)
    terminal, log = ''.join(capfd.readouterr()), next(work_dir.glob('*/*.log')).read_text()
    for text in ('Hooks will be executed', 'Average Recall', 'index created'):  # hundreds of lines
        assert text in log
        assert text not in terminal
    report = _read_report(work_dir, ['box AP50', 'mask AP50', 'duplicate', 'fish', 'torch', 'alt="loss"'])
    assert report.seen.count('table') == 3
    assert (work_dir / 'best_coco_segm_mAP_epoch_1.pth').is_file()
    (record,) = read_scalars(work_dir)[1]
    for name in ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP_75', 'coco/bbox_fish_precision'):
        assert name in record
    assert Config.fromfile(work_dir / 'tiny.py').val_evaluator.type == 'CocoMetric'

    checkpoint, out = find_last_checkpoint(work_dir), tmp_path / 'found.pkl'
    arguments = [str(work_dir / 'tiny.py'), str(checkpoint), '--work-dir', str(tmp_path / 'test')]
    fast = ['--fast-eval'] if stack.current() is stack.ONEDL else []
    assert test.main([*arguments, '--out', str(out), '--show-dir', str(tmp_path / 'shown'), *fast]) == 0
    assert 'per class' in capfd.readouterr().out.lower()
    assert len(list((tmp_path / 'shown').glob('*.jpg'))) == 2
    found = pickle.loads(out.read_bytes())
    _run_script(f"""
import pickle
from mmdet.apis import DetInferencer
inferencer = DetInferencer(model={str(work_dir / 'tiny.py')!r}, weights={str(checkpoint)!r}, device='cpu')
out = inferencer({found[0]['img_path']!r}, return_datasamples=True, no_save_pred=True)['predictions'][0].pred_instances
pickle.dump([out.bboxes.numpy(), out.scores.numpy()], open({str(tmp_path / 'boxes.pkl')!r}, 'wb'))
""")
    boxes, scores = (torch.from_numpy(values) for values in pickle.loads((tmp_path / 'boxes.pkl').read_bytes()))
    expected = found[0]['pred_instances']
    torch.testing.assert_close(scores.sort().values, expected['scores'].sort().values)
    torch.testing.assert_close(boxes.sort(0).values, expected['bboxes'].sort(0).values, atol=1e-2, rtol=0)


def test_segmentation_report_tta_and_inferencer(tmp_path: Path):
    changes = {f'{key}': 2 for key in ('train_cfg.max_iters', 'train_cfg.val_interval')}
    config = tiny_config('semfpn_evit_m0', tmp_path / 'config', **changes)
    work_dir = tmp_path / 'run'
    run_training(config, work_dir)
    _read_report(work_dir, ['mIoU', 'boundary IoU', 'Confusion matrix', 'water'])
    checkpoint = find_last_checkpoint(work_dir)
    arguments = [str(work_dir / 'tiny.py'), str(checkpoint), '--work-dir', str(tmp_path / 'test')]
    assert test.main([*arguments, '--tta', '--show-dir', str(tmp_path / 'shown')]) == 0
    assert len(list((tmp_path / 'shown').glob('*.jpg'))) == 2
    assert (tmp_path / 'test' / 'confusion.png').read_bytes().startswith(b'\x89PNG')
    _run_script(f"""
import numpy as np
from mmseg.apis import MMSegInferencer
inferencer = MMSegInferencer(model={str(work_dir / 'tiny.py')!r}, weights={str(checkpoint)!r}, device='cpu')
found = inferencer(np.zeros((70, 90, 3), dtype=np.uint8), return_datasamples=True)
assert found.pred_sem_seg.data.shape == (1, 70, 90), found
""")
