"""Paths in another frame: what a tf2 buffer says, what it does not know, and where up is."""

import importlib.util

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from std_msgs.msg import Header

from mask2iv_ros.ros.frames import Frames, to_matrix

HALF = np.sqrt(0.5)
#: The camera looks down from 1 m above the base: its z is the base's -z, its x the base's x.
LOOKING_DOWN = Transform(translation=Vector3(x=0.2, y=0.0, z=1.0), rotation=Quaternion(x=1.0, w=0.0))


class Buffer:
    """Transforms that are known at one time, as tf2's buffer gives them out."""

    def __init__(self, *transforms: TransformStamped):
        self.transforms = transforms

    def lookup_transform(self, target, source, time) -> TransformStamped:
        for found in self.transforms:
            if (found.header.frame_id, found.child_frame_id) == (target, source):
                stamp = found.header.stamp
                if time.nanoseconds != stamp.sec * 10**9 + stamp.nanosec:
                    raise LookupError('Lookup would require extrapolation into the past')
                return found
        raise LookupError(f'"{target}" passed to lookupTransform argument target_frame does not exist')


@pytest.fixture
def frames(peer) -> Frames:
    header = Header(stamp=Time(sec=7), frame_id='base')
    return Frames(
        peer.node,
        Buffer(TransformStamped(header=header, child_frame_id='camera', transform=LOOKING_DOWN)),
    )


def test_points_are_taken_to_the_frame_at_the_images_time(frames):
    matrix, reason = frames.to_frame('base', Header(stamp=Time(sec=7), frame_id='camera'))
    assert reason == ''
    np.testing.assert_allclose(matrix @ (0.1, 0.3, 0.8, 1), (0.3, -0.3, 0.2, 1), atol=1e-12)


def test_up_is_the_z_of_the_gravity_frame(frames):
    up, reason = frames.up('base', Header(stamp=Time(sec=7), frame_id='camera'))
    assert reason == ''
    np.testing.assert_allclose(up, (0, 0, -1), atol=1e-12)  # towards the camera


@pytest.mark.parametrize(
    ('target', 'source', 'second', 'words'),
    [
        ('base', 'camera', 8, 'extrapolation'),
        ('map', 'camera', 7, '"map" passed'),
        ('base', '', 7, 'the image has no frame_id'),
        ('base', 'camera', 0, 'the image has no stamp'),
    ],
)
def test_what_is_not_known_has_a_reason(frames, target, source, second, words):
    header = Header(stamp=Time(sec=second), frame_id=source)
    for found, reason in (frames.to_frame(target, header), frames.up(target, header)):
        assert found is None
        assert f'to {target}: ' in reason
        assert words in reason


def test_the_images_own_frame_needs_no_buffer(peer):
    matrix, reason = Frames(peer.node).to_frame('camera', Header(frame_id='camera'))
    np.testing.assert_array_equal(matrix, np.eye(4))
    assert reason == ''


@pytest.mark.parametrize(
    ('rotation', 'turned'),
    [((0, 0, HALF, HALF), (0, 1, 0)), ((0, -3 * HALF, 0, 3 * HALF), (0, 0, 1)), ((0, 0, 0, 1), (1, 0, 0))],
)
def test_quaternions_of_any_length_turn(rotation, turned):
    """About z by 90 degrees, about y by -90 degrees, and not at all; x is turned."""
    quaternion = Quaternion(**{axis: float(value) for axis, value in zip('xyzw', rotation, strict=True)})
    matrix = to_matrix(Transform(rotation=quaternion))
    np.testing.assert_allclose(matrix[:3, 0], turned, atol=1e-12)


def test_a_quaternion_of_no_length_is_no_transform():
    with pytest.raises(ValueError, match='length 0'):
        to_matrix(Transform(rotation=Quaternion(w=0.0)))


@pytest.mark.skipif(importlib.util.find_spec('tf2_ros') is not None, reason='tf2_ros is installed')
def test_without_tf2_ros_the_reason_says_so(peer):
    frames = Frames(peer.node)
    frames.listen('', '')  # nothing is wanted
    assert 'nothing listens' in frames.to_frame('base', Header(frame_id='camera'))[1]
    frames.listen('base', '')
    assert 'tf2_ros is not installed' in frames.to_frame('base', Header(frame_id='camera'))[1]


@pytest.mark.skipif(importlib.util.find_spec('tf2_ros') is None, reason='tf2_ros is not installed')
def test_tf2_ros_finds_what_is_broadcast(peer):
    from tf2_ros import StaticTransformBroadcaster

    frames = Frames(peer.node)
    frames.listen('base', '')
    header = Header(stamp=Time(sec=7), frame_id='base')
    broadcaster = StaticTransformBroadcaster(peer.node)
    broadcaster.sendTransform(
        TransformStamped(header=header, child_frame_id='camera', transform=LOOKING_DOWN)
    )
    asked = Header(stamp=Time(sec=7), frame_id='camera')
    peer.spin_until(lambda: frames.to_frame('base', asked)[0] is not None)
    matrix, _ = frames.to_frame('base', asked)
    np.testing.assert_allclose(matrix @ (0.1, 0.3, 0.8, 1), (0.3, -0.3, 0.2, 1), atol=1e-12)
    assert 'base2' in frames.to_frame('base2', asked)[1]
