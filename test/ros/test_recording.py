"""A recording (rosbag2) is planned on in its own time: `use_sim_time` and /clock."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image

from mask2iv_ros.ros.client import InteractionError
from ros_harness import BagPlayer, record_bag, until

COUNT = 20  # images
RATE = 10.0  # images a second
KINDS = {
    '/image': Image,
    '/object_mask': Image,
    '/actor_mask': Image,
    '/depth': Image,
    '/camera_info': CameraInfo,
}


@pytest.fixture(scope='module')
def bag(start_node, peer, tmp_path_factory):
    """Two seconds of the simulated camera, which is gone then."""
    camera = start_node(module='sim_camera', width=160, height=120, rate=RATE)
    folder = tmp_path_factory.mktemp('recording') / 'bag'
    record_bag(peer, folder, KINDS, COUNT)
    camera.stop()
    return folder


@pytest.fixture(scope='module')
def player(bag, peer, start_node, tiny_model, client):
    start_node(model=tiny_model, use_sim_time='true')
    client.wait_until_ready()
    player = BagPlayer(peer, bag, KINDS)
    with pytest.raises(InteractionError, match='NO_IMAGE'):
        client.generate(task='open the drawer')
    player.play(10)  # until the node's side of the connection is there too, and asks reliably
    until(lambda: player.play(10) or answers(client))
    return player


def answers(client) -> bool:
    try:
        return client.generate(task='open the drawer').path is not None
    except InteractionError:
        return False


def image_stamps(player: BagPlayer, count: int | None = None) -> list[int]:
    images = [data for _, topic, data in player.messages[:count] if topic == '/image']
    return [nanoseconds(deserialize_message(data, Image)) for data in images]


def nanoseconds(message) -> int:
    return Time.from_msg(message.header.stamp).nanoseconds


def test_plans_are_of_the_moment_that_the_recording_shows(player, client):
    """At its own rate; by the clock on the wall every image in it is too old to be answered."""
    stamps, plans = image_stamps(player), []
    with ThreadPoolExecutor() as pool:
        playing = pool.submit(player.play)
        while not playing.done():
            with contextlib.suppress(InteractionError):  # right after it began anew, inputs are incomplete
                plans.append(client.generate(task='open the drawer'))
    playing.result()
    plans.append(client.generate(task='open the drawer'))  # a slow machine may have made none near the end
    seen = [nanoseconds(plan.message) for plan in plans]
    assert set(seen) <= set(stamps)
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert seen[-1] >= stamps[-5]
    assert time.time_ns() - stamps[-1] > 2e9  # max_age
    pose = plans[-1].message.object_path.poses[-1]
    assert (nanoseconds(pose) - seen[-1]) / 1e9 == pytest.approx(plans[-1].times[-1])


def test_a_recording_that_starts_anew_is_not_answered_with_its_end(player, client):
    player.play(rate=10)
    half = len(player.messages) // 2
    player.play(half, rate=10)
    beginning = image_stamps(player, half)
    plan = client.generate(task='open the drawer')
    assert beginning[0] <= nanoseconds(plan.message) <= beginning[-1]


def test_what_is_old_by_the_clock_of_the_recording_is_refused(player, client):
    player.play(rate=10)
    player.tell(player.messages[-1][0] + 60 * 10**9)
    until(lambda: refusal(client).startswith('STALE_INPUT: image: the newest on /image (1 publisher) is 60'))


def refusal(client) -> str:
    with pytest.raises(InteractionError) as refused:
        client.generate(task='open the drawer')
    return str(refused.value)
