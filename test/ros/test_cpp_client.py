"""A C++ planner builds against the installed package and gets plans from the node."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from sensor_msgs.msg import CameraInfo

from mask2iv_ros.ros.conversions import write_image
from ros_harness import HEIGHT, WIDTH

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / 'examples/cpp_client'


@pytest.fixture(scope='module', autouse=True)
def node(start_node, tiny_model):
    return start_node(model=tiny_model, max_age=0.0)


@pytest.fixture(scope='module')
def planner(node, tmp_path_factory) -> Path:
    """The planner as a library, built while the node loads."""
    build = tmp_path_factory.mktemp('cpp')
    source = REPOSITORY / 'test/cpp_consumer'
    subprocess.run(['cmake', '-S', source, '-B', build, '-Wno-dev'], check=True, capture_output=True)
    run = subprocess.run(['cmake', '--build', build], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return build / 'libplanner.so'


def ask(planner: Path, task: str) -> subprocess.CompletedProcess:
    call = 'import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).plan(sys.argv[2].encode()))'
    command = [sys.executable, '-c', call, planner, task]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_cpp_planner_gets_a_plan(planner, client, camera, scene_messages):
    client.wait_until_ready()
    depth = write_image(np.full((HEIGHT, WIDTH), 0.8, np.float32), '32FC1')
    calibration = CameraInfo(width=WIDTH, height=HEIGHT, k=[100.0, 0, 39.5, 0, 100.0, 29.5, 0, 0, 1])
    camera.publish(**scene_messages, depth=depth, camera_info=calibration)
    run = ask(planner, 'open the drawer')
    assert run.returncode == 0, run.stdout + run.stderr
    head, *path = run.stdout.splitlines()
    assert head.startswith("'open the drawer' by tiny: 8 frames, object of 400 pixels, contact in frame ")
    assert len(path) == 8
    assert path[0].startswith('  0 s: ')
    assert float(path[0].split()[4]) == pytest.approx(0.8, abs=0.01)  # z


def test_a_cpp_planner_gets_the_reason_of_a_refusal(planner, client):
    client.wait_until_ready()
    run = ask(planner, '')
    assert run.returncode == 1
    assert run.stdout.startswith('error 7: ')  # NO_TASK_OR_GOAL


def colcon_list(*arguments: str | Path) -> list[str]:
    run = subprocess.run(['colcon', 'list', '--names-only', *arguments], capture_output=True, cwd=REPOSITORY)
    return run.stdout.decode().split()


def test_the_example_is_a_package_of_its_own():
    assert colcon_list() == ['mask2iv_ros']
    assert colcon_list('--base-paths', 'examples') == ['mask2iv_cpp_client']


def test_the_example_builds(tmp_path):
    try:
        get_package_prefix('rclcpp_action')
    except PackageNotFoundError:
        pytest.skip('rclcpp is not on PyPI; only a ROS 2 installation has it')
    folders = [f'--{name}-base={tmp_path / name}' for name in ('build', 'install')]
    run = subprocess.run(
        ['colcon', '--log-base', tmp_path / 'log', 'build', '--base-paths', EXAMPLE, *folders],
        capture_output=True,
        text=True,
        env=os.environ | {'MAKEFLAGS': '-j2'},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert os.access(tmp_path / 'install/mask2iv_cpp_client/lib/mask2iv_cpp_client/cpp_client', os.X_OK)
