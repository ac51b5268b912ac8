"""Run the menu as ``python -m mmplugin``."""

import sys

from mmplugin.cli import main

sys.exit(main())
