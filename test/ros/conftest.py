"""Real round trips: the node runs in its own process, with a tiny model of the real classes.

Every test run has a DDS domain of its own on this machine, and every module one node process.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')

# Before rclpy is initialised. Domains 1 to 99 keep clear of the kernel's own ports.
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 99)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

from sensor_msgs.msg import Image

from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.conversions import write_image
from ros_harness import HEIGHT, TEST_FOLDER, WIDTH, Camera, NodeProcess, Peer, package_env


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a tiny model; built in another process, so that torch is not loaded into this one."""
    folder = tmp_path_factory.mktemp('model') / 'tiny'
    subprocess.run([sys.executable, 'tiny_model.py', folder], cwd=TEST_FOLDER, check=True, env=package_env())
    return folder


@pytest.fixture(scope='module')
def start_node(tmp_path_factory):
    """Start mask2iv nodes, or other modules', that end with the test module: start_node(name=value, ...)."""
    nodes = []

    def start(
        prefix: tuple[str, ...] = (),
        module: str = 'node',
        remaps: dict[str, str] | None = None,
        **parameters,
    ) -> NodeProcess:
        log = tmp_path_factory.mktemp('node') / 'log.txt'
        if module == 'node':
            parameters = {'device': 'cpu', **parameters}
        nodes.append(NodeProcess(module, parameters, log, prefix, remaps))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()
        sys.stdout.write(node.log.read_text())  # shown with a failed test


@pytest.fixture(scope='module')
def client():
    with InteractionClient() as client:
        yield client


@pytest.fixture(scope='module')
def peer():
    peer = Peer('test_peer')
    yield peer
    peer.close()


@pytest.fixture(scope='module')
def camera(peer):
    return Camera(peer)


@pytest.fixture
def scene() -> dict[str, np.ndarray]:
    """Arrays of a small scene: an image, an object of 20 x 20 pixels, an actor above it."""
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    object_mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    object_mask[20:40, 30:50] = 1
    actor_mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    actor_mask[:20, 35:45] = 1
    return {'image': image, 'object_mask': object_mask, 'actor_mask': actor_mask}


@pytest.fixture
def scene_messages(scene) -> dict[str, Image]:
    """The scene as the topics' messages, without stamps; masks are 0 and 255."""
    masks = {name: write_image(scene[name] * 255, 'mono8') for name in ('object_mask', 'actor_mask')}
    return {'image': write_image(scene['image'], 'rgb8'), **masks}
