"""Executes visual plans over ROS 2: a pure client of the mask2iv node and of a robot's topics.

    python -m mask2iv_ros.ros.node &
    python -m mask2iv_ros.ros.sim_robot --ros-args -p scene:=door-close &    # or your robot
    python examples/execute_plans.py "close the door"

It sees the camera, masks of object and arm, depth, the hand's position and the gripper's opening, asks
GenerateInteraction for masks, turns them into hand motion (`mask2iv_ros.planning.execution`, no rule of it
knows a task), commands one step after the other, and plans again when the hand is stuck. Topics are those of
`mask2iv_ros.ros.sim_robot`; for a robot of your own change `TopicRobot`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, Header

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import Camera
from mask2iv_ros.image_messages import read_colour, read_depth, read_distortion, read_intrinsics, read_mask
from mask2iv_ros.planning.arm_appearance import ArmAppearance
from mask2iv_ros.planning.execution import Observation
from mask2iv_ros.planning.rollout import MAX_STEPS, Planned, execute
from mask2iv_ros.ros.client import InteractionClient, InteractionError
from mask2iv_ros.ros.sim_camera import TOPICS
from mask2iv_ros.ros.transport import offered_by_all, use_large_shared_memory


class TopicRobot:
    """The robot behind topics, as `mask2iv_ros.planning.rollout.execute` commands it.

    Args:
        node: to talk through; it is spun here.
        patience: seconds to wait for any message.

    Attributes:
        header: of the image that was observed last, which tells the node its depth and calibration.
    """

    def __init__(self, node: Node, patience: float = 60.0):
        self._patience = patience
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self.header = Header()
        self._command = np.zeros(4)
        self._state = {}
        self._images = {name: deque(maxlen=10) for name in TOPICS}
        for name, kind in TOPICS.items():
            images = self._images[name]
            self._subscribe(node, kind, name, lambda m, images=images: images.append(m))
        states = {'camera_pose': PoseStamped, 'success': Bool, 'gripper': JointState, 'hand': PoseStamped}
        for name, kind in states.items():
            self._subscribe(node, kind, name, lambda m, name=name: self._state.update({name: m}))
        self._commands = node.create_publisher(Float64MultiArray, 'commands', 10)
        self._wait(lambda: self._state.keys() == states.keys(), 'hand, gripper, success and camera_pose')
        self._wait(lambda: self._commands.get_subscription_count(), 'somebody who listens to commands')

    @property
    def hand(self) -> np.ndarray:
        p = self._state['hand'].pose.position
        return np.array((p.x, p.y, p.z))

    @property
    def opening(self) -> float:
        return self._state['gripper'].position[0]

    @property
    def success(self) -> bool:
        return self._state['success'].data

    def observe(self, colour: bool = False) -> Observation:
        """What the images show that are newer than the hand's last motion; it is stopped for them."""
        if self._command[:3].any():  # a velocity may hold until the next one, and planning takes seconds
            self.step(np.zeros(3), self._command[3])
        moved = _nanoseconds(self._state['hand'])
        found = {}

        def complete() -> bool:
            stamps = [{_nanoseconds(message) for message in images} for images in self._images.values()]
            common = [stamp for stamp in set.intersection(*stamps) if stamp > moved]
            if common:
                newest = max(common)
                for name, images in self._images.items():
                    found[name] = next(m for m in images if _nanoseconds(m) == newest)
            return bool(common)

        self._wait(complete, 'images, masks, depth and camera_info of one stamp, newer than the last command')
        if read_distortion(found['camera_info']) is not None:
            raise ValueError('camera_info has lens distortion, expected rectified images')
        if (intrinsics := read_intrinsics(found['camera_info'])) is None:
            raise ValueError('camera_info is not calibrated: its K is empty')
        self.header = found['image'].header
        labels = lb.combine_masks(read_mask(found['object_mask']), read_mask(found['actor_mask']))
        pose = self._state['camera_pose'].pose
        p, q = pose.position, pose.orientation
        cam_to_world = np.eye(4)
        cam_to_world[:3, :3] = Rotation.from_quat((q.x, q.y, q.z, q.w)).as_matrix()
        cam_to_world[:3, 3] = p.x, p.y, p.z
        return Observation(
            labels,
            np.nan_to_num(read_depth(found['depth'])),
            Camera(intrinsics, cam_to_world),
            self.hand,
            self.opening,
            read_colour(found['image']) if colour else None,
        )

    def step(self, velocity: np.ndarray, grip: float):
        """Command one step, and wait until the hand reports where it is."""
        before = _nanoseconds(self._state['hand'])
        self._send(np.array((*velocity, grip)))

        def moved() -> bool:
            hand, gripper = (_nanoseconds(self._state[name]) for name in ('hand', 'gripper'))
            return hand > before and gripper == hand

        self._wait(moved, 'hand and gripper of one stamp after a command')

    def stop(self):
        """Command the hand to stand still, and do not wait for it."""
        self._send(np.array((0, 0, 0, self._command[3])))

    def _send(self, command: np.ndarray):
        self._command = command
        self._commands.publish(Float64MultiArray(data=command.astype(float).tolist()))

    def _subscribe(self, node: Node, kind: type, topic: str, callback: Callable):
        """Listen as its publishers send: cameras are often best effort, states latched or not."""
        self._wait(lambda: node.get_publishers_info_by_topic(topic), f'a publisher of {topic}')
        reliability, durability = offered_by_all(
            [publisher.qos_profile for publisher in node.get_publishers_info_by_topic(topic)]
        )
        quality = QoSProfile(depth=5, reliability=reliability, durability=durability)
        node.create_subscription(kind, topic, callback, quality)

    def _wait(self, condition: Callable[[], bool], what: str):
        end = time.monotonic() + self._patience
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f'expected {what}; nothing came for {self._patience:.0f} s')
            self._executor.spin_once(timeout_sec=0.1)


def service_planner(
    client: InteractionClient, robot: TopicRobot, task: str, samples: int = 1
) -> Callable[[Observation], list[np.ndarray]]:
    """From the robot's newest observation to the (T, H, W) label images of the node's plans; none if it
    refuses to plan."""

    seeds = itertools.count(1)  # another plan for a scene that has not changed

    def plan(observation: Observation) -> list[np.ndarray]:
        try:
            received = client.generate(
                image=observation.frame,
                object_mask=observation.labels == lb.OBJECT,
                actor_mask=observation.labels == lb.ACTOR,
                task=task,
                seed=samples * next(seeds),
                num_samples=samples,
                trajectory_only=True,
                header=robot.header,
            )
        except InteractionError as error:
            if error.name not in ('EMPTY_MASK', 'CHECKS_FAILED'):
                raise
            print(f'no plan: {error}')
            return []
        print(f'{received}, {received.message.trajectory_time:.1f} s')
        return [plan.labels for plan in (received, *received.alternatives)]

    return plan


def _nanoseconds(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('task', help='what to do, in words')
    parser.add_argument('--node', default='/mask2iv', help='name of the mask2iv node')
    parser.add_argument('--steps', type=int, default=MAX_STEPS, help='most control steps')
    parser.add_argument(
        '--arm',
        help='how the arm looks to this camera: arm_CAMERA.npz of benchmarks/execute_metaworld.py; without '
        'it only the motion of the object is used',
    )
    parser.add_argument(
        '--samples',
        type=int,
        default=6,
        help='plans of the node to choose from: the one whose hand comes nearest to the object; with --arm',
    )
    options = parser.parse_args(arguments)
    arm = ArmAppearance.load(options.arm) if options.arm else None
    use_large_shared_memory()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C comes here, and stops the hand
    try:
        with InteractionClient(options.node) as client:
            client.wait_until_ready()
            robot = TopicRobot(rclpy.create_node('execute_plans'))
            samples = options.samples if arm else 1  # without the arm's look nothing tells them apart
            policy = Planned(service_planner(client, robot, options.task, samples), arm, colour=True)
            try:
                rollout = execute(robot, policy, options.steps)
                robot.observe()  # until then the last step's success has come
                solved = robot.success
            finally:
                robot.stop()
    finally:
        rclpy.try_shutdown()
    for motion, step in zip(rollout.motions, rollout.started, strict=True):
        print(f'step {step}: {motion.kind}, {motion.reason}')
    print(f'{"solved" if solved else "not solved"} after {rollout.steps} steps')
    return 0 if solved else 1


if __name__ == '__main__':
    sys.exit(main())
