"""A simulated robot camera: one Meta-World scene, published as an RGB-D camera and a mask node would."""

from __future__ import annotations

import signal
import sys

import numpy as np
import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.data.metaworld import FIRST_SEED, RETRY_STRIDE, TASKS, record_clip
from mask2iv_ros.labels import ACTOR, OBJECT
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.parameters import Row, declare_parameters
from mask2iv_ros.ros.transport import use_large_shared_memory

TABLE = (
    Row('scene', 'drawer-open', 'Meta-World task that is set up.', pattern='|'.join(TASKS), read_only=True),
    Row(
        'seed',
        0,
        'Number of the test scene: placement of object and camera.',
        limits=(0, RETRY_STRIDE - 1),
        read_only=True,
    ),
    Row('width', 640, 'Pixels.', limits=(16, 4096), read_only=True),
    Row('height', 480, 'Pixels.', limits=(16, 4096), read_only=True),
    Row('rate', 5.0, 'Images a second.', limits=(0.1, 100.0), read_only=True),
    Row('frame_id', 'sim_camera_optical_frame', 'Frame of all messages.', read_only=True),
)


TOPICS = {
    'image': Image,
    'object_mask': Image,
    'actor_mask': Image,
    'depth': Image,
    'camera_info': CameraInfo,
}


def camera_messages(
    frame: np.ndarray, labels: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray
) -> dict[str, Image | CameraInfo]:
    """A message for each of `TOPICS`, without header.

    Args:
        frame: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 label image.
        depth: (H, W) metres, 0 where there is none.
        intrinsics: (3, 3) pixels.
    """
    height, width = labels.shape
    projection = np.hstack([intrinsics, np.zeros((3, 1))])
    return {
        'image': write_image(frame, 'rgb8'),
        'object_mask': write_image(np.uint8(labels == OBJECT) * 255, 'mono8'),
        'actor_mask': write_image(np.uint8(labels == ACTOR) * 255, 'mono8'),
        'depth': write_image(np.where(depth > 0, depth, np.nan).astype(np.float32), '32FC1'),
        'camera_info': CameraInfo(
            width=width,
            height=height,
            distortion_model='plumb_bob',
            d=[0.0] * 5,
            k=intrinsics.ravel(),
            r=np.eye(3).ravel(),
            p=projection.ravel(),
        ),
    }


def camera_publishers(node: Node) -> dict[str, Publisher]:
    """A publisher for each of `TOPICS`."""
    # Reliable, which serves best-effort subscribers too: else Fast DDS loses most large images.
    return {name: node.create_publisher(kind, name, 5) for name, kind in TOPICS.items()}


class SimCamera(Node):
    """Renders a scene once, then publishes it with fresh stamps.

    Publishes `image` (rgb8), `object_mask`, `actor_mask` (mono8, 255 inside), `depth` (32FC1 metres, NaN
    where there is none) and `camera_info`, all with the same stamp.
    """

    def __init__(self):
        super().__init__('sim_camera')
        declare_parameters(self, TABLE)
        values = self.get_parameters([row.name for row in TABLE])
        scene, seed, width, height, rate, self._frame_id = (parameter.value for parameter in values)

        clip = record_clip(scene, FIRST_SEED['test'] + seed, height, width, num_frames=2)
        self._messages = camera_messages(
            clip.frames[0], clip.labels[0], clip.depth[0], clip.camera.intrinsics
        )
        self._camera_publishers = camera_publishers(self)
        self.create_timer(1 / rate, self._publish)
        self.get_logger().info(f'{clip.task!r} at {width} x {height} pixels, {rate} images a second')

    def _publish(self):
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        for name, message in self._messages.items():
            message.header = header
            self._camera_publishers[name].publish(message)


def run(kind: type[Node], args: list[str] | None = None) -> int:
    """Run a simulated node until SIGINT or SIGTERM. Returns the exit status, 2 for a wrong parameter."""
    use_large_shared_memory()
    rclpy.init(args=args)
    try:
        try:
            node = kind()
        except (ParameterException, ValueError) as error:
            rclpy.logging.get_logger(kind.__name__).fatal(f'A parameter has a wrong value: {error}')
            return 2
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except rclpy_implementation.RCLError:
        if rclpy.ok():
            raise  # else it was publishing when it was told to stop
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would hit MuJoCo's clean-up
        rclpy.try_shutdown()
    return 0


def main(args: list[str] | None = None) -> int:
    """Run the camera until SIGINT or SIGTERM. Returns the exit status."""
    return run(SimCamera, args)


if __name__ == '__main__':
    sys.exit(main())
