"""Live demonstrations into a LeRobot dataset: the frames that `mask2iv import` would make of a recording."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from std_srvs.srv import Trigger

from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.data.rosbag import Contract, Timeline, build_clip, has_stamp
from mask2iv_ros.image_messages import read_stamp
from mask2iv_ros.ros.parameters import Row, declare_parameters
from mask2iv_ros.ros.sim_camera import run
from mask2iv_ros.ros.transport import offered_by_all

TABLE = (
    Row('contract', '', 'YAML file of topics, see config/recording.yaml.', read_only=True),
    Row('dataset', '', 'Folder of the LeRobot dataset that episodes are appended to.', read_only=True),
    Row(
        'max_seconds',
        120.0,
        'An episode that lasts longer ends there; it waits in memory.',
        limits=(1.0, 3600.0),
    ),
)


class Recorder(Node):
    """Records an episode between the services `~/start` and `~/stop`; `~/discard` forgets it.

    Answers tell the number of frames, and what was left out and why. An episode that cannot be written leaves
    the dataset as it was, and waits for another `~/stop`.
    """

    def __init__(self):
        super().__init__('recorder')
        declare_parameters(self, TABLE)
        path, self._dataset = (self.get_parameter(name).value for name in ('contract', 'dataset'))
        if not path or not self._dataset:
            raise ValueError('contract and dataset: expected a file and a folder, got nothing')
        self._contract = Contract.load(path)
        self._kinds: dict[str, str] = {}
        self._joints: dict[str, list[str]] = {}  # in the order of its first episode
        self._messages: dict[str, list[tuple[int, bytes]]] = {}
        self._recording = []
        self._begin = 0
        self._is_cut = False
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        self._rewound = self.get_clock().create_jump_callback(backwards, post_callback=self._on_rewound)
        for name in ('start', 'stop', 'discard'):
            self.create_service(Trigger, f'~/{name}', getattr(self, f'_{name}'))
        self.get_logger().info(f'Ready to record {", ".join(self._contract.topics)} into {self._dataset}')

    def _start(self, _, response: Trigger.Response) -> Trigger.Response:
        if self._recording:
            return self._answer(response, False, 'already recording')
        try:
            offers = {topic: self.get_publishers_info_by_topic(topic) for topic in self._contract.topics}
        except (NameValidationException, ValueError) as error:
            return self._answer(response, False, f'contract: {error}')
        if silent := [topic for topic, found in offers.items() if not found]:
            return self._answer(response, False, f'nobody publishes {", ".join(silent)}')
        kinds = {topic: found[0].topic_type for topic, found in offers.items()}
        try:
            types = {topic: _message_type(kind) for topic, kind in kinds.items()}
        except ValueError as error:
            return self._answer(response, False, str(error))
        self._kinds, self._messages = kinds, {topic: [] for topic in offers}
        self._begin = self.get_clock().now().nanoseconds
        self._is_cut = False
        for topic, found in offers.items():
            reliability, durability = offered_by_all([offer.qos_profile for offer in found])
            quality = QoSProfile(depth=100, reliability=reliability, durability=durability)
            self._recording.append(
                self.create_subscription(types[topic], topic, self._keeper(topic), quality, raw=True)
            )
        return self._answer(response, True, f'recording {", ".join(offers)}')

    def _on_rewound(self, jump: TimeJump):
        """Simulated time went back: begin the episode anew, with what may have been latched."""
        self._begin = self.get_clock().now().nanoseconds
        if not self._recording:
            return
        latched = {self._contract.task, *(camera.camera_info for camera in self._contract.cameras.values())}
        for topic, kept in self._messages.items():
            self._messages[topic] = [(self._begin, data) for _, data in kept[-1:] if topic in latched]
        self._is_cut = False
        self.get_logger().warning('time went back: the episode begins anew')

    def _keeper(self, topic: str):
        def keep(data: bytes):
            now = self.get_clock().now().nanoseconds
            if now - self._begin < self.get_parameter('max_seconds').value * 1e9:
                self._messages[topic].append((now, data))
            elif not self._is_cut:
                self._is_cut = True
                self.get_logger().warning(f'max_seconds are over: {self._cut_note()}')

        return keep

    def _cut_note(self) -> str:
        return f'the episode ended after {self.get_parameter("max_seconds").value:g} s (max_seconds)'

    def _stop(self, _, response: Trigger.Response) -> Trigger.Response:
        if not self._recording and not self._messages:
            return self._answer(response, False, 'not recording')
        self._end()
        try:
            written = self._write()
        except Exception as error:  # of LeRobot, PyAV or a contract; the episode stays in memory
            told = str(error) if isinstance(error, (ValueError, OSError)) else repr(error)
            again = 'stop tries again, start and discard forget it'
            return self._answer(response, False, f'no episode was written: {told}. {again}')
        self._messages = {}
        return self._answer(response, True, written)

    def _discard(self, _, response: Trigger.Response) -> Trigger.Response:
        if not self._recording and not self._messages:
            return self._answer(response, False, 'not recording')
        self._end()
        self._messages = {}
        return self._answer(response, True, 'forgotten')

    def _end(self):
        for subscription in self._recording:
            self.destroy_subscription(subscription)
        self._recording = []

    def _write(self) -> str:
        contract = self._contract
        arrived, stamps = {}, {}
        for topic, kept in self._messages.items():
            arrived[topic] = np.array([at for at, _ in kept], np.int64)
            is_stamped = has_stamp(self._kinds[topic])
            stamps[topic] = np.array([read_stamp(data) if is_stamped else at for at, data in kept], np.int64)
        timeline = Timeline(arrived, stamps)
        timeline.sample(contract)
        messages = {}
        for topic, kept in self._messages.items():
            kind = _message_type(self._kinds[topic])
            wanted = {0, timeline.newest(topic)}  # of calibration and text
            if topic in timeline.picked:
                wanted = set(timeline.picked[topic].tolist())
            messages[topic] = {index: deserialize_message(kept[index][1], kind) for index in wanted}
        frames, joints = np.arange(len(timeline.times)), dict(self._joints)
        views = {
            name: build_clip(contract, name, timeline, messages, frames, joints) for name in contract.cameras
        }
        for name, clip in views.items():
            clip.source |= {'dataset': 'live', 'camera': name, 'recorded_at': self._begin / 1e9}
        depth = all(clip.depth is not None for clip in views.values())
        with LeRobotClipWriter(Path(self._dataset), depth=depth) as writer:
            index = writer.add(views)
        self._joints = joints
        notes = [f'{count} left out: {reason}' for reason, count in timeline.dropped.items()]
        notes = [', '.join(notes)] * bool(notes) + [self._cut_note()] * self._is_cut
        return '; '.join([f'episode {index} of {self._dataset}: {len(frames)} frames', *notes])

    def _answer(self, response: Trigger.Response, success: bool, message: str) -> Trigger.Response:
        if success:
            self.get_logger().info(message)
        else:
            self.get_logger().error(message)
        response.success, response.message = success, message
        return response


def _message_type(name: str) -> type:
    """The class of 'package/msg/Name'; ValueError if it is not installed."""
    package, _, kind = name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'{name}: {error}') from error


def main(args: list[str] | None = None) -> int:
    """Run the recorder until SIGINT or SIGTERM. Returns the exit status."""
    return run(Recorder, args)


if __name__ == '__main__':
    sys.exit(main())
