"""The recorder writes what passes between start and stop, and says what it left out."""

import time

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray, Header
from std_srvs.srv import Trigger

from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.labels import ACTOR, OBJECT
from mask2iv_ros.ros.conversions import write_image

MAX_SECONDS = 6.0
CONTRACT = {
    'fps': 10,
    'task': 'open the drawer',
    'max_age': 0.5,
    'max_dropped': 0.5,
    'cameras': {
        'front': {
            'image': '/image',
            'object_mask': '/object_mask',
            'actor_mask': '/actor_mask',
            'camera_info': '/camera_info',
        }
    },
    'states': ['/joint_states:position'],
    'actions': ['/command:data'],
}


@pytest.fixture(scope='module')
def dataset(start_node, peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp('recorder')
    (folder / 'contract.yaml').write_text(yaml.safe_dump(CONTRACT))
    start_node(module='sim_camera', scene='drawer-open', width=160, height=120, rate=10.0)
    start_node(
        module='recorder', contract=folder / 'contract.yaml', dataset=folder / 'live', max_seconds=MAX_SECONDS
    )
    seen = []
    subscription = peer.node.create_subscription(CameraInfo, '/camera_info', seen.append, 10)
    peer.spin_until(lambda: seen, 90)
    peer.node.destroy_subscription(subscription)
    return folder / 'live'


def call(peer, name: str) -> Trigger.Response:
    return peer.call(Trigger, f'/recorder/{name}')


def test_a_topic_that_nobody_publishes_is_named(dataset, peer):
    answer = call(peer, 'start')
    assert not answer.success
    assert answer.message == 'nobody publishes /joint_states, /command'
    assert call(peer, 'stop').message == 'not recording'


def test_an_episode_has_what_was_published_between_start_and_stop(dataset, peer):
    joints = peer.node.create_publisher(JointState, '/joint_states', 10)
    commands = peer.node.create_publisher(Float64MultiArray, '/command', 10)

    def move(seconds: float):
        begin = time.monotonic()
        while (at := time.monotonic() - begin) < seconds:
            joints.publish(JointState(position=[at, 2 * at]))
            commands.publish(Float64MultiArray(data=[at]))
            peer.spin_for(0.05)

    for round_, seconds in enumerate((3, MAX_SECONDS + 1)):
        assert call(peer, 'start').success
        assert not call(peer, 'start').success  # twice
        move(seconds)
        answer = call(peer, 'stop')
        assert answer.success, answer.message
        assert f'episode {round_} of {dataset}' in answer.message
    assert 'the episode ended after 6 s (max_seconds)' in answer.message
    assert call(peer, 'start').success
    assert call(peer, 'discard').success

    reader = open_dataset(dataset)
    assert len(reader) == 2
    clip = reader.read(1)
    assert clip.task == 'open the drawer'
    assert 8 < len(clip) <= 10 * MAX_SECONDS + 1
    np.testing.assert_allclose(clip.states[:, 1], 2 * clip.states[:, 0], rtol=1e-6)
    assert (np.diff(clip.states[:, 0]) >= 0).all()
    assert np.abs(clip.states[:, 0] - clip.actions[:, 0]).max() < 0.5
    assert (clip.labels == OBJECT).any()
    assert (clip.labels == ACTOR).any()
    assert clip.camera.intrinsics[0, 0] > 0


@pytest.fixture(scope='module')
def own_recorder(start_node, tmp_path_factory):
    """Starts a recorder in a namespace, with a contract of one image topic; returns its dataset's path."""

    def start(namespace: str, image: str, **parameters):
        folder = tmp_path_factory.mktemp('own')
        (folder / 'contract.yaml').write_text(
            yaml.safe_dump(
                {'fps': 10, 'task': 'wave', 'max_dropped': 0.5, 'cameras': {'front': {'image': image}}}
            )
        )
        contract, dataset = folder / 'contract.yaml', folder / 'live'
        remaps = {'__ns': namespace}
        start_node(module='recorder', remaps=remaps, contract=contract, dataset=dataset, **parameters)
        return dataset

    return start


def test_a_topic_that_cannot_be_is_answered(own_recorder, peer):
    own_recorder('/odd', '/camera-1/image')
    for _ in range(2):  # it lives
        answer = peer.call(Trigger, '/odd/recorder/start')
        assert not answer.success
        assert 'contract: ' in answer.message
        assert '/camera-1/image' in answer.message


def test_an_episode_begins_anew_when_time_goes_back(own_recorder, peer):
    dataset = own_recorder('/sim', '/sim_image', use_sim_time=True)
    clock = peer.node.create_publisher(Clock, '/clock', 10)
    images = peer.node.create_publisher(Image, '/sim_image', 10)
    peer.spin_until(lambda: clock.get_subscription_count(), 30)

    def pass_by(begin: float, end: float, value: int):
        for at in np.arange(begin, end, 0.1):
            now = Time(sec=int(at), nanosec=round(at % 1 * 1e9))
            clock.publish(Clock(clock=now))
            peer.spin_for(0.02)
            images.publish(write_image(np.full((48, 64, 3), value, np.uint8), 'rgb8', Header(stamp=now)))
            peer.spin_for(0.02)

    pass_by(100, 101, 10)
    assert peer.call(Trigger, '/sim/recorder/start').success
    pass_by(101, 103, 10)
    pass_by(5, 8, 200)
    answer = peer.call(Trigger, '/sim/recorder/stop')
    assert answer.success, answer.message
    clip = open_dataset(dataset).read(0)
    assert 15 < len(clip) <= 31
    assert (np.abs(clip.frames.astype(int) - 200) < 20).all()


def test_an_episode_without_frames_is_refused_and_the_dataset_stays(dataset, peer):
    assert call(peer, 'start').success
    answer = call(peer, 'stop')  # nobody moves
    assert not answer.success
    assert 'no episode was written: no message on /' in answer.message
    assert call(peer, 'stop').message == answer.message  # the episode is not lost
    assert call(peer, 'discard').success
    assert call(peer, 'stop').message == 'not recording'
    assert len(open_dataset(dataset)) == 2
