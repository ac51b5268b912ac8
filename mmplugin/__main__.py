"""Entry point of ``python -m mmplugin``."""

import sys

from mmplugin.cli import main

sys.exit(main())
