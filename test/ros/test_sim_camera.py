"""The simulated camera publishes one scene as a real RGB-D camera and mask node would."""

import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from mask2iv_ros.data.metaworld import FIRST_SEED, record_clip
from mask2iv_ros.image_messages import read_colour, read_depth, read_intrinsics, read_mask

TOPICS = {
    'image': Image,
    'object_mask': Image,
    'actor_mask': Image,
    'depth': Image,
    'camera_info': CameraInfo,
}


@pytest.fixture(scope='module')
def messages(start_node, peer) -> dict:
    """Two rounds of messages of each topic."""
    start_node(module='sim_camera', scene='drawer-open', width=160, height=120, rate=20.0)
    seen = {name: [] for name in TOPICS}
    for name, kind in TOPICS.items():
        peer.node.create_subscription(kind, name, seen[name].append, qos_profile_sensor_data)
    peer.spin_until(lambda: all(len(received) > 3 for received in seen.values()), timeout=60)
    return seen


def test_all_topics_share_stamp_frame_and_size(messages):
    stamps = [{m.header.stamp.nanosec for m in received} for received in messages.values()]
    common = set.intersection(*stamps)
    assert len(common) >= 2  # fresh stamps, the same on all topics
    assert {m.header.frame_id for received in messages.values() for m in received} == {
        'sim_camera_optical_frame'
    }
    assert {(m.width, m.height) for received in messages.values() for m in received} == {(160, 120)}


def test_masks_depth_and_calibration_make_sense(messages):
    last = {name: received[-1] for name, received in messages.items()}
    colour, depth = read_colour(last['image']), read_depth(last['depth'])
    drawer, robot = read_mask(last['object_mask']), read_mask(last['actor_mask'])
    assert colour.std() > 10
    assert drawer.sum() > 100
    assert robot.sum() > 100
    assert not (drawer & robot).any()
    assert 0.5 < np.median(depth[drawer]) < 2.5
    k = read_intrinsics(last['camera_info'])
    assert k[0, 0] == pytest.approx(k[1, 1])
    assert (k[0, 2], k[1, 2]) == pytest.approx((79.5, 59.5))


def test_the_scene_is_one_of_the_test_split(messages):
    clip = record_clip('drawer-open', FIRST_SEED['test'], 120, 160, num_frames=2)
    np.testing.assert_array_equal(read_colour(messages['image'][-1]), clip.frames[0])


@pytest.mark.parametrize(('name', 'value'), [('scene', 'no-such-scene'), ('rate', 0.0), ('seed', -1)])
def test_a_wrong_parameter_ends_with_a_reason(start_node, name, value):
    node = start_node(module='sim_camera', **{name: value})
    assert node.process.wait(60) == 2
    log = node.log.read_text()
    assert 'A parameter has a wrong value' in log
    assert name in log
    assert str(value) in log
    assert 'Traceback' not in log
