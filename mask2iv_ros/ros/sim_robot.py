"""A simulated robot to command: a Meta-World scene before a fixed camera, one control step a command."""

from __future__ import annotations

import sys

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, Header

from mask2iv_ros.data.metaworld import TASKS
from mask2iv_ros.data.metaworld_execution import FIRST_SEED, PUBLISHED_CAMERAS, ExecutionScene
from mask2iv_ros.ros.parameters import Row, declare_parameters
from mask2iv_ros.ros.sim_camera import camera_messages, camera_publishers, run

WORLD = 'world'
#: Keeps the newest message for those who come later.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TABLE = (
    Row('scene', 'door-close', 'Meta-World task that is set up.', pattern='|'.join(TASKS), read_only=True),
    Row('camera', 'corner', 'Where it is seen from.', pattern='|'.join(PUBLISHED_CAMERAS), read_only=True),
    Row('seed', 0, 'Number of the scene: placement of the object.', limits=(0, 99_999), read_only=True),
    Row('width', 320, 'Pixels.', limits=(16, 4096), read_only=True),
    Row('height', 240, 'Pixels.', limits=(16, 4096), read_only=True),
    Row(
        'rate',
        2.0,
        'Images a second; drawing them stops the robot meanwhile.',
        limits=(0.1, 100.0),
        read_only=True,
    ),
    Row('frame_id', 'sim_camera_optical_frame', 'Frame of the images.', read_only=True),
)


class SimRobot(Node):
    """Publishes what `SimCamera` does, as it is now, and what a robot knows of itself.

    * `camera_pose`, latched: the camera's optical frame in `world`.
    * `gripper` (JointState), then `hand` (PoseStamped in `world`), both latched and after every command:
      opening, 0 closed to 1 open, and position. Stamped when they were true; an image that shows the same or
      a later state has a later stamp.
    * `success`, latched: whether the task is solved; for those who count, a robot would not know.

    Listens to `commands` (Float64MultiArray, as forward_command_controller of ros2_control): velocity x, y, z
    of the hand in -1..1, where 1 is 1 cm a step, and effort of the gripper, -1 opens, 1 closes.
    """

    def __init__(self):
        super().__init__('sim_robot')
        declare_parameters(self, TABLE)
        values = self.get_parameters([row.name for row in TABLE])
        scene, camera, seed, width, height, rate, self._frame_id = (parameter.value for parameter in values)
        self.scene = ExecutionScene(scene, camera, height, width)
        self.scene.reset(FIRST_SEED + seed)
        self._images = camera_publishers(self)
        self._gripper = self.create_publisher(JointState, 'gripper', LATCHED)
        self._hand = self.create_publisher(PoseStamped, 'hand', LATCHED)
        self._success = self.create_publisher(Bool, 'success', LATCHED)
        self._camera_pose = self.create_publisher(PoseStamped, 'camera_pose', LATCHED)
        self._camera_pose.publish(self._pose(self.scene.camera.cam_to_world))
        self._publish_state()
        self.create_subscription(Float64MultiArray, 'commands', self._on_command, 10)
        self.create_timer(1 / rate, self._publish_images)
        self.get_logger().info(f'{self.scene.text!r}, seen from {camera}, {rate} images a second')

    def _on_command(self, message: Float64MultiArray):
        command = np.array(message.data)
        if command.shape != (4,) or not np.isfinite(command).all():
            self.get_logger().error(f'commands: expected 4 finite numbers, got {command.tolist()}')
            return
        self.scene.step(command[:3], command[3])
        self._publish_state()

    def _publish_state(self):
        pose = np.eye(4)
        pose[:3, 3] = self.scene.hand
        hand = self._pose(pose)
        self._success.publish(Bool(data=bool(self.scene.success)))
        self._gripper.publish(
            JointState(header=hand.header, name=['gripper'], position=[float(self.scene.opening)])
        )
        self._hand.publish(hand)

    def _publish_images(self):
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        seen = self.scene.observe(colour=True)
        for name, message in camera_messages(
            seen.frame, seen.labels, seen.depth, seen.camera.intrinsics
        ).items():
            message.header = header
            self._images[name].publish(message)

    def _pose(self, matrix: np.ndarray) -> PoseStamped:
        message = PoseStamped(header=Header(stamp=self.get_clock().now().to_msg(), frame_id=WORLD))
        position, turn = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = matrix[:3, 3]
        turn.x, turn.y, turn.z, turn.w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        return message


def main(args: list[str] | None = None) -> int:
    """Run the robot until SIGINT or SIGTERM. Returns the exit status."""
    return run(SimRobot, args)


if __name__ == '__main__':
    sys.exit(main())
