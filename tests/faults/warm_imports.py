"""What the server of :mod:`faults.processes` imports once, so that the commands that it forks start at once."""

import os
from importlib import import_module

os.environ.update(OMP_NUM_THREADS='1', MPLBACKEND='Agg', HF_HUB_OFFLINE='1')  # one thread: forks copy no thread pools

import_module('mmplugin')  # first, see ``tiny_training.IMPORT_FIRST``
for name in ('cli', 'engine.check_data', 'engine.html_report', 'engine.runner', 'engine.test', 'engine.train'):
    import_module(f'mmplugin.{name}')
stack = import_module('mmplugin.stack')
stack.ignore_known_warnings()
for name in ('mmdet.models', 'mmdet.datasets', 'mmseg.models', 'mmseg.datasets'):
    stack.import_quietly(name)
# mmengine formats the whole config for every checkpoint, which takes longer than a tiny training.
import_module('yapf.yapflib.yapf_api').FormatCode = lambda text, **style: (text, True)
