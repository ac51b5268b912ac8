"""Run the doctor as ``python -m mmplugin.doctor``."""

import sys

from mmplugin.doctor import main

sys.exit(main())
