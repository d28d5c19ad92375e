"""Cameras as they are: messages lost, late, twice, in the wrong order; restarted cameras, and two at once."""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros import labels as lb
from mask2iv_ros.ros.client import InteractionClient, InteractionError
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.received_plan import ReceivedPlan
from ros_harness import HEIGHT, WIDTH, Peer, until

LEFT = {name: f'/left/{name}' for name in ('image', 'object_mask')}
LEFT_WITH_EXTRAS = LEFT | {name: f'/left/{name}' for name in ('actor_mask', 'depth', 'camera_info')}
RIGHT = {'image': '/right/rgb', 'object_mask': '/right/segments'}
RATE = 30  # images a second, by their stamps
PATIENCE = 3  # numbers that lie within `max_stamp_difference`, 0.1 s


@pytest.fixture(scope='module', autouse=True)
def nodes(start_node, tiny_model):
    """One node a camera: one in a namespace, one under names of its own."""
    return (
        start_node(model=tiny_model, remaps={'__ns': '/left'}, max_age=60.0, num_inference_steps=1),
        start_node(
            model=tiny_model,
            remaps={'__node': 'right', **RIGHT},
            max_age=60.0,
            num_inference_steps=1,
            low_memory='true',
        ),
    )


@pytest.fixture(scope='module')
def left():
    with InteractionClient('/left/mask2iv') as client:
        client.wait_until_ready()
        yield client


@pytest.fixture(scope='module')
def right():
    with InteractionClient('/right') as client:
        client.wait_until_ready()
        yield client


class NumberedCamera:
    """Number i of a stream shows i: the image its grey value, a mask its column, depth its centimetres.

    As a context manager it ends after use. Stamps never overlap those of a camera before.
    """

    begin = 0  # stamp of number 0, nanoseconds

    def __init__(self, peer: Peer, client: InteractionClient, topics: dict[str, str], reliability='reliable'):
        self.peer, self.client, self.frame_id = peer, client, f'{topics["image"]}_frame'
        NumberedCamera.begin = max(peer.node.get_clock().now().nanoseconds, self.begin + 3 * 10**9)
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy[reliability.upper()])
        self.publishers = {
            name: peer.node.create_publisher(CameraInfo if name == 'camera_info' else Image, topic, qos)
            for name, topic in topics.items()
        }

    def __enter__(self):
        """Wait for the node to hear it, as reliably as it speaks."""
        for publisher in self.publishers.values():
            asked = publisher.qos_profile.reliability
            find = partial(self.peer.node.get_subscriptions_info_by_topic, publisher.topic_name)
            self.peer.spin_until(lambda: asked in [s.qos_profile.reliability for s in find()])  # noqa: B023
        self.expect(0, before=lambda: self.publish(*((name, 0) for name in self.publishers)))
        return self

    def __exit__(self, *_):
        for publisher in self.publishers.values():
            self.peer.node.destroy_publisher(publisher)

    def message(self, name: str, i: int) -> Image | CameraInfo:
        stamp = self.begin + i * 10**9 // RATE
        header = Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id=self.frame_id)
        if name == 'image':
            return write_image(np.full((HEIGHT, WIDTH), i, np.uint8), 'mono8', header)
        if name == 'depth':
            return write_image(np.full((HEIGHT, WIDTH), 0.5 + i / 100, np.float32), '32FC1', header)
        if name == 'camera_info':
            k = (100.0, 0.0, WIDTH / 2, 0.0, 100.0, HEIGHT / 2, 0.0, 0.0, 1.0)
            return CameraInfo(header=header, width=WIDTH, height=HEIGHT, k=k)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        rows = slice(20, 40) if name == 'object_mask' else slice(42, 55)
        mask[rows, i : i + 15] = 1
        return write_image(mask, 'mono8', header)

    def publish(self, *messages: tuple[str, int]):
        for name, i in messages:
            self.publishers[name].publish(self.message(name, i))

    def expect(self, i: int, before: Callable[[], None] = lambda: None, **more: int):
        """Ask until a plan starts from image i and its own mask, since messages take their time."""
        wanted = {'image': i, 'object_mask': i, **more}
        seen = []

        def is_expected() -> bool:
            before()
            try:
                plan = self.client.generate(task='push', timeout=20)
            except InteractionError as error:  # nothing yet, or none that fit yet
                seen.append(str(error))
                return False
            seen.append((plan.message.header.frame_id, numbers(plan)))
            return seen[-1][0] == self.frame_id and wanted.items() <= seen[-1][1].items()

        try:
            until(is_expected, 15)
        except AssertionError:
            pytest.fail(f'expected {wanted} of {self.frame_id}, got {seen[-5:]}')


def numbers(plan: ReceivedPlan) -> dict[str, int]:
    """The numbers of what a plan starts from."""
    found = {'image': int(plan.video[0, 0, 0, 0])}
    for name, label in (('object_mask', lb.OBJECT), ('actor_mask', lb.ACTOR)):
        columns = np.flatnonzero((plan.labels[0] == label).any(axis=0))
        found |= {name: int(columns[0])} if len(columns) else {}
    if plan.path is not None:
        found['depth'] = round(100 * (float(plan.path[0, 2]) - 0.5))
    return found


@pytest.mark.parametrize('seed', range(3))
def test_damaged_streams_still_give_matching_pairs(left, peer, seed):
    """Images and masks are lost, come twice, late and in the wrong order."""
    rng = random.Random(seed)
    images = [('image', i) for i in range(1, 40) if rng.random() < 0.9]
    masks = [('object_mask', i) for i in range(1, 40) if rng.random() < 0.67]
    stream = [(i + rng.uniform(0, 3), name, i) for name, i in images]
    stream += [(i + rng.uniform(0, 8), name, i) for name, i in masks]
    stream += [(at + rng.uniform(0, 5), name, i) for at, name, i in rng.sample(stream, 15)]
    with NumberedCamera(peer, left, LEFT) as camera:
        camera.publish(*((name, i) for _, name, i in sorted(stream)))
        camera.expect(max({i for _, i in images} & {i for _, i in masks}))


def test_while_a_mask_is_late_its_predecessor_is_taken(left, peer):
    with NumberedCamera(peer, left, LEFT) as camera:
        camera.publish(*(('image', i) for i in range(1, 12)))
        camera.expect(0)
        camera.publish(('object_mask', 11))
        camera.expect(11)


@pytest.mark.parametrize('reliability', ['best_effort', 'reliable'])
def test_a_camera_may_restart_with_another_qos(left, reliability):
    peer = Peer('camera')
    with NumberedCamera(peer, left, LEFT, reliability) as camera:
        camera.expect(0)
    peer.close()


def test_two_cameras_at_once_are_not_mixed_up(left, right, peer):
    with NumberedCamera(peer, left, LEFT) as one, NumberedCamera(peer, right, RIGHT) as other:
        one.publish(*((name, 11) for name in LEFT))
        other.publish(*((name, 44) for name in RIGHT))
        one.expect(11)
        other.expect(44)
        plans = [client.generate_async(task='push', num_samples=2) for client in (left, right)]
        started = [numbers(plan.result(30)) for plan in plans]
        assert started == [{'image': i, 'object_mask': i} for i in (11, 44)]


def test_a_calibration_that_was_latched_before_is_heard(right, peer):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    camera = NumberedCamera(peer, right, RIGHT | {'depth': '/depth'})
    publisher = peer.node.create_publisher(CameraInfo, '/camera_info', latched)
    publisher.publish(camera.message('camera_info', 0))  # once, before the node knows of the publisher
    with camera:
        camera.publish(*((name, 7) for name in camera.publishers))
        camera.expect(7, depth=7)
    peer.node.destroy_publisher(publisher)


@pytest.mark.parametrize('seed', range(3))
def test_damaged_streams_of_depth_and_actor_are_matched_too(left, peer, seed):
    """An image that has its actor's mask and depth is preferred to one that is up to 0.1 s newer.

    Comes last: for `max_age` after an actor's mask, images without one are refused.
    """
    rng = random.Random(seed)
    kept = {'image': 0.9, 'object_mask': 0.9, 'actor_mask': 0.8, 'depth': 0.6}
    sent = {name: {i for i in range(1, 40) if rng.random() < share} for name, share in kept.items()}
    stream = [(i + rng.uniform(0, 5), name, i) for name in sent for i in sent[name]]
    stream += [(at + rng.uniform(0, 5), name, i) for at, name, i in rng.sample(stream, 20)]
    complete = sent['image'] & sent['object_mask'] & sent['actor_mask']
    newest, with_depth = max(complete), max(complete & sent['depth'])
    with NumberedCamera(peer, left, LEFT_WITH_EXTRAS) as camera:
        camera.publish(*((name, i) for _, name, i in sorted(stream)))
        if newest - with_depth <= PATIENCE:
            camera.expect(with_depth, actor_mask=with_depth, depth=with_depth)
        else:
            camera.expect(newest, actor_mask=newest)
