"""Export a trained model. Same as ``mmplugin export``, but also runs in a clone that is not installed."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec('mmplugin') is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmplugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))
