"""Copy configs, tools and the model index into the wheel; everything else about the package is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithMim(build_py):
    """Build with ``mmplugin/.mim``, where OpenMMLab's tools look; the source tree stays as it is."""

    def run(self) -> None:
        """Build the package, then add the copies. An editable install reads the clone and needs none."""
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib, 'mmplugin/.mim')
        shutil.rmtree(mim, ignore_errors=True)
        for name in ('configs', 'tools'):
            shutil.copytree(ROOT / name, mim / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
        shutil.copy(ROOT / 'model-index.yml', mim)


setup(cmdclass={'build_py': BuildWithMim})
