"""The buffer gives a request the messages that belong together, and keeps no more than it was told."""

import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.ros.perception_buffer import PerceptionBuffer, read_stamp

MILLISECOND = 1_000_000


def serialised(stamp: int, kind=Image) -> bytes:
    header = Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id='camera')
    return bytes(serialize_message(kind(header=header)))


def buffer_with(size: int = 10, **milliseconds: list[int]) -> PerceptionBuffer:
    buffer = PerceptionBuffer(size)
    for topic, stamps in milliseconds.items():
        for stamp in stamps:
            buffer.add(topic, serialised(stamp * MILLISECOND))
    return buffer


def chosen(buffer: PerceptionBuffer, *others: str, **options) -> tuple[dict[str, float], float]:
    options = {'tolerance': 100 * MILLISECOND, **options}
    found, spread = buffer.matching('image', list(others), **options)
    return {topic: message.stamp / MILLISECOND for topic, message in found.items()}, spread / MILLISECOND


@pytest.mark.parametrize('kind', [Image, CameraInfo])
@pytest.mark.parametrize('stamp', [0, 1, 1_700_000_000_123_456_789])
def test_the_stamp_is_read_from_the_serialised_message(kind, stamp):
    assert read_stamp(serialised(stamp, kind)) == stamp


def test_only_the_newest_messages_are_kept():
    buffer = buffer_with(size=2, image=[10, 20, 30])
    assert buffer.newest('image').stamp == 30 * MILLISECOND
    assert buffer.closest('image', 0).stamp == 20 * MILLISECOND


def test_an_unknown_topic_has_no_messages():
    buffer = PerceptionBuffer(3)
    assert buffer.newest('image') is None
    assert buffer.closest('image', 5) is None


def test_a_late_mask_is_matched_with_its_own_image():
    # The mask node needs 100 ms, so the newest image has no mask yet.
    buffer = buffer_with(image=[0, 33, 66, 100, 133], object_mask=[0, 33])
    assert chosen(buffer, 'object_mask') == ({'image': 33, 'object_mask': 33}, 0)


def test_of_equally_good_sets_the_newest_wins():
    buffer = buffer_with(image=[0, 50, 100], object_mask=[0, 50, 100], actor_mask=[0, 50, 100])
    assert chosen(buffer, 'object_mask', 'actor_mask')[0] == {
        'image': 100,
        'object_mask': 100,
        'actor_mask': 100,
    }


def test_a_newer_set_is_not_given_up_for_a_little_jitter():
    buffer = buffer_with(image=[0, 100], object_mask=[0, 102])
    assert chosen(buffer, 'object_mask') == ({'image': 100, 'object_mask': 102}, 2)


def test_the_worst_topic_decides():
    buffer = buffer_with(image=[0, 100], object_mask=[0, 101], actor_mask=[0])
    assert chosen(buffer, 'object_mask', 'actor_mask') == ({'image': 0, 'object_mask': 0, 'actor_mask': 0}, 0)


def test_a_topic_without_messages_is_left_out():
    buffer = buffer_with(image=[10], object_mask=[13])
    assert chosen(buffer, 'object_mask', 'actor_mask') == ({'image': 10, 'object_mask': 13}, 3)


def test_images_that_are_too_old_are_not_considered():
    buffer = buffer_with(image=[0, 100], object_mask=[0, 130])
    assert chosen(buffer, 'object_mask', not_before=50 * MILLISECOND) == (
        {'image': 100, 'object_mask': 130},
        30,
    )
    # If all are, the newest is given, and its age is the caller's to judge.
    assert chosen(buffer, 'object_mask', not_before=500 * MILLISECOND)[0]['image'] == 100


def test_a_cleared_buffer_is_empty():
    buffer = buffer_with(image=[10])
    buffer.clear()
    assert buffer.newest('image') is None


def test_a_good_fit_is_no_reason_for_an_old_picture():
    buffer = buffer_with(image=[0, 1300], object_mask=[0, 1320])
    assert chosen(buffer, 'object_mask') == ({'image': 1300, 'object_mask': 1320}, 20)


def test_without_a_set_within_tolerance_the_closest_is_told():
    buffer = buffer_with(image=[1000, 2000], object_mask=[500])
    assert chosen(buffer, 'object_mask') == ({'image': 1000, 'object_mask': 500}, 500)


def test_large_messages_are_bounded_but_the_newest_stays(monkeypatch):
    size = len(serialised(0))
    monkeypatch.setattr('mask2iv_ros.ros.perception_buffer.MAX_BYTES', 2 * size + 1)
    buffer = buffer_with(image=[10, 20, 30])
    assert buffer.closest('image', 0).stamp == 20 * MILLISECOND
    monkeypatch.setattr('mask2iv_ros.ros.perception_buffer.MAX_BYTES', 1)
    buffer.add('image', serialised(40 * MILLISECOND))
    assert buffer.closest('image', 0).stamp == 40 * MILLISECOND
