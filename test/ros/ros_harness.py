"""Parts of the ROS tests: a node in another process, a peer to talk to it, a camera to show it things."""

import contextlib
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from rosbags.rosbag2 import Reader, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.ros import node_process

TEST_FOLDER = Path(__file__).parents[1]
HEIGHT, WIDTH = 60, 80  #: of the scene


class NodeProcess(node_process.NodeProcess):
    """A node whose output a test can wait for."""

    def wait_for(self, text: str, timeout: float = 60.0):
        """Return once the node has printed `text`."""
        end = time.monotonic() + timeout
        while text not in self.log.read_text():
            assert time.monotonic() < end, f'{text!r} did not come:\n{self.log.read_text()}'
            time.sleep(0.05)


class Peer:
    """A rclpy node of the test's own, spun by hand."""

    def __init__(self, name: str):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self.node = rclpy.create_node(name, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def spin_until(self, condition, timeout: float = 20.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, 'the condition did not come true in time'
            self.executor.spin_once(timeout_sec=0.1)

    def spin_for(self, seconds: float):
        end = time.monotonic() + seconds
        self.spin_until(lambda: time.monotonic() > end)

    def call(self, kind, name: str, timeout: float = 60.0, again: float = math.inf, **fields):
        """Call a service and return its response.

        A server that has only just been discovered may lose a request or its answer; one that changes nothing
        can be sent anew after `again` seconds.
        """
        service = self.node.create_client(kind, name)
        assert service.wait_for_service(20)
        answers, begin = [], time.monotonic()

        def answered() -> bool:
            if time.monotonic() - begin >= (again * len(answers) if answers else 0):
                answers.append(service.call_async(kind.Request(**fields)))
            return any(answer.done() for answer in answers)

        self.spin_until(answered, timeout)
        self.node.destroy_client(service)
        return next(answer for answer in answers if answer.done()).result()

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def until(condition, timeout: float = 20.0):
    """Return once `condition()` is true; other threads and processes make it so."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, 'the condition did not come true in time'
        time.sleep(0.02)


class Camera:
    """Publishes what a test wants the node to see, on the node's input topics."""

    def __init__(self, peer: Peer):
        self.peer = peer
        self.is_connected = False
        kinds = {'image': Image, 'object_mask': Image, 'actor_mask': Image, 'depth': Image}
        self.publishers = {
            name: peer.node.create_publisher(kind, name, qos_profile_sensor_data)
            for name, kind in (kinds | {'camera_info': CameraInfo}).items()
        }

    def publish(self, age: float = 0.0, **messages):
        """Publish messages, each stamped `age` seconds ago unless it has a stamp, and let them arrive."""
        if not self.is_connected:
            self.peer.spin_until(lambda: all(p.get_subscription_count() for p in self.publishers.values()))
            self.peer.spin_for(1.0)  # the node's side of the connection is not seen from here
            self.is_connected = True
        header = Header(stamp=self.stamp(age), frame_id='camera_optical_frame')
        for name, message in messages.items():
            if message.header.stamp == Time():
                message.header = header
            self.publishers[name].publish(message)
        time.sleep(0.3)

    def stamp(self, age: float = 0.0) -> Time:
        now = self.peer.node.get_clock().now().nanoseconds - round(age * 1e9)
        return Time(sec=now // 10**9, nanosec=now % 10**9)


def record_bag(peer: Peer, path: Path, kinds: dict[str, type], count: int):
    """Write at least `count` messages a topic to a new rosbag2 folder; `kinds`: message class by topic."""
    typestore = get_typestore(Stores.ROS2_JAZZY)
    counts = dict.fromkeys(kinds, 0)
    with Writer(path, version=9) as writer:

        def listen(topic: str, kind: type):
            name = f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'
            connection = writer.add_connection(topic, name, typestore=typestore)

            def write(data: bytes):
                writer.write(connection, peer.node.get_clock().now().nanoseconds, data)
                counts[topic] += 1

            return peer.node.create_subscription(kind, topic, write, 10, raw=True)

        subscriptions = [listen(topic, kind) for topic, kind in kinds.items()]
        peer.spin_until(lambda: min(counts.values()) >= count, 60)
        for subscription in subscriptions:
            peer.node.destroy_subscription(subscription)


class BagPlayer:
    """Publishes a rosbag2 folder and its time on /clock, as `ros2 bag play --clock` does."""

    def __init__(self, peer: Peer, path: Path, kinds: dict[str, type]):
        with Reader(path) as reader:
            self.messages = [(at, c.topic, bytes(data)) for c, at, data in reader.messages()]
        self.clock = peer.node.create_publisher(Clock, '/clock', 10)
        self.publishers = {
            topic: peer.node.create_publisher(kind, topic, 10) for topic, kind in kinds.items()
        }
        for publisher in (self.clock, *self.publishers.values()):
            peer.spin_until(publisher.get_subscription_count)

    def play(self, count: int | None = None, rate: float = 1.0):
        """Publish the first `count` messages (None: all), `rate` times as fast as they were recorded."""
        first, start = self.messages[0][0], time.monotonic()
        for at, topic, data in self.messages[:count]:
            while (early := start + (at - first) / 1e9 / rate - time.monotonic()) > 0:
                time.sleep(min(early, 0.02))
                self.tell(first + round((time.monotonic() - start) * rate * 1e9))
            self.tell(at)
            self.publishers[topic].publish(data)

    def tell(self, at: int):
        self.clock.publish(Clock(clock=Time(sec=at // 10**9, nanosec=at % 10**9)))


def set_parameter(peer, name: str, **value) -> str:
    """Set a parameter; returns the reason of a refusal, '' on success."""
    types = {'bool': 'BOOL', 'integer': 'INTEGER', 'double': 'DOUBLE', 'string': 'STRING',
             'double_array': 'DOUBLE_ARRAY'}  # fmt: skip
    ((kind, value),) = value.items()
    content = ParameterValue(
        type=getattr(ParameterType, f'PARAMETER_{types[kind]}'), **{f'{kind}_value': value}
    )
    answer = peer.call(
        SetParameters, '/mask2iv/set_parameters', parameters=[Parameter(name=name, value=content)]
    )
    return '' if answer.results[0].successful else answer.results[0].reason


@contextlib.contextmanager
def separate_process(script: str, *arguments: str):
    """Run Python source in another process that is killed, not asked, at the end."""
    process = subprocess.Popen(
        [sys.executable, '-c', script, *arguments],
        env=package_env(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def package_env() -> dict[str, str]:
    path = os.pathsep.join([str(TEST_FOLDER.parent), os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': path}
