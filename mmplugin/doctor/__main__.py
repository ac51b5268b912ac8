"""Entry point of ``python -m mmplugin.doctor``."""

import sys

from mmplugin.cli import main

sys.exit(main(['doctor', *sys.argv[1:]]))
