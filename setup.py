"""Build mmplugin. A wheel also carries configs and tools under ``mmplugin/.mim``, where OpenMMLab's tools look."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ONEDL = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation')
STOCK = ('mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'setuptools')


def version() -> str:
    """Read the version where it is written, without importing the package and its dependencies."""
    return re.search(r"^__version__ = '(.+)'$", (ROOT / 'mmplugin/__init__.py').read_text(), re.M)[1]


def pinned(file: str, names: tuple[str, ...]) -> list[str]:
    """Take the pins of ``names`` from a constraints file, so that no version is written twice."""
    pins = dict(re.findall(r'^([\w-]+)(==\S+)$', (ROOT / file).read_text(), re.M))
    return [name + pins[name] for name in names]


class BuildWithMim(build_py):
    """Copy configs and tools into the build, never into the source tree."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a clone is read where it lies
            return
        mim = Path(self.build_lib, 'mmplugin/.mim')
        shutil.rmtree(mim, ignore_errors=True)
        for name in ('configs', 'tools'):
            shutil.copytree(ROOT / name, mim / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))


setup(
    name='mmplugin',
    version=version(),
    description='EfficientFormer, EfficientFormerV2 and Microsoft\'s EfficientViT as backbones for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['mmplugin', 'mmplugin.*']),
    # The OpenMMLab packages are a choice between two stacks: see extras_require.
    install_requires=['torch>=2.4', 'numpy', 'rich'],
    extras_require={
        'onedl': [*pinned('constraints.txt', ONEDL), 'faster-coco-eval'],
        'stock': pinned('constraints-stock.txt', STOCK),
        'onnx': pinned('constraints.txt', ('onnx', 'onnxscript', 'onnxruntime')),
        'test': pinned('constraints.txt', ('pytest', 'ruff', 'safetensors', 'timm')),
    },
    entry_points={'console_scripts': ['mmplugin = mmplugin.cli:main']},
    cmdclass={'build_py': BuildWithMim},
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
